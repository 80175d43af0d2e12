package fuse

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

// ram is a device in memory.
type ram struct {
	mu       sync.RWMutex
	content  []byte
	readOnly bool
	block    chan struct{} // reads wait for it; nil: they don't

	failure                         atomic.Pointer[error] // of everything that changes or reads
	reads, writes, flushes, blocked atomic.Int64
	zeroes                          []export.ZeroFlags
	zeroed                          int64
}

func (r *ram) fail(err error) { r.failure.Store(&err) }

func (r *ram) failing() error {
	if err := r.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// zeros gives what Zero was called with.
func (r *ram) zeros() []export.ZeroFlags {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.zeroes)
}

func (r *ram) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.content)
}

func newRAM(size int) *ram { return &ram{content: make([]byte, size)} }

func (r *ram) Size() int64    { return int64(len(r.content)) }
func (r *ram) ReadOnly() bool { return r.readOnly }

func (r *ram) ReadAt(ctx context.Context, p []byte, offset int64) error {
	r.reads.Add(1)
	if r.block != nil {
		r.blocked.Add(1)
		defer r.blocked.Add(-1)
		select {
		case <-r.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	copy(p, r.content[offset:])
	return r.failing()
}

func (r *ram) WriteAt(_ context.Context, p []byte, offset int64, _ bool) error {
	r.writes.Add(1)
	if r.readOnly {
		return fault.Errorf(fault.Permission, "read-only")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.content[offset:], p)
	return r.failing()
}

func (r *ram) Flush(context.Context) error {
	r.flushes.Add(1)
	return r.failing()
}

func (r *ram) Zero(_ context.Context, offset, length int64, z export.ZeroFlags) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.zeroes, r.zeroed = append(r.zeroes, z), r.zeroed+length
	clear(r.content[offset : offset+length])
	return r.failing()
}

func (r *ram) Prefetch(context.Context, int64, int64) error { return nil }

// Extents tells by 4 KiB, with holes where there are zeros.
func (r *ram) Extents(_ context.Context, offset, length int64, yield func(export.Extent) bool) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for end := offset + length; offset < end; {
		next := min(end, (offset/4096+1)*4096)
		zero := true
		for _, b := range r.content[offset:next] {
			zero = zero && b == 0
		}
		if !yield(export.Extent{Offset: offset, Length: next - offset, Hole: zero, Zero: zero}) {
			return nil
		}
		offset = next
	}
	return r.failing()
}

// quickRAM has all in reach.
type quickRAM struct {
	*ram
	quick atomic.Int64
}

func (q *quickRAM) TryReadAt(p []byte, offset int64) (bool, error) {
	q.quick.Add(1)
	q.mu.RLock()
	defer q.mu.RUnlock()
	copy(p, q.content[offset:])
	return true, nil
}

func (q *quickRAM) TryWriteAt([]byte, int64) (bool, error)    { return false, nil }
func (q *quickRAM) TryFile(int64, int) (uintptr, int64, bool) { return 0, 0, false }
