package volume

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/repository"
)

// remote is the source, as long as the volume is: beyond its end are zeros until somebody writes there. Nothing of
// it is called before it is needed, so that a volume can open while its repository is gone.
type remote struct {
	cache.Source
	size int64 // of the volume

	mu     sync.Mutex
	known  bool
	length int64 // of the source
	floor  int64 // that a loss of power leaves of it

	read, written atomic.Int64 // bytes
}

func (r *remote) end() (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.endLocked()
}

func (r *remote) endLocked() (int64, error) {
	if !r.known {
		r.length = r.Source.Size()
		if r.length < 0 || r.length > r.size {
			return 0, fault.Errorf(fault.Invalid, "the image has %d bytes, more than the volume's %d", r.length, r.size)
		}
		if r.length < r.size {
			r.floor = r.length // nobody has made it longer
		}
		r.known = true
	}
	return r.length, nil
}

// readAt fills p.
func (r *remote) readAt(p []byte, offset int64) error {
	end, err := r.end()
	if err != nil {
		return err
	}
	inside := p[:max(0, min(int64(len(p)), end-offset))]
	clear(p[len(inside):])
	if len(inside) == 0 {
		return nil
	}
	n, err := r.Source.ReadAt(inside, offset)
	r.read.Add(int64(n))
	switch {
	case n == len(inside):
		return nil
	case (err == nil || err == io.EOF) && r.shrunk(offset+int64(len(inside))):
		return r.readAt(p, offset)
	case err == nil || err == io.EOF:
		return fault.Errorf(fault.Corrupt, "image: %d bytes instead of %d at byte %d", n, len(inside), offset)
	}
	return err
}

// shrunk reports whether the source has become shorter than to: a loss of power took back that it was made longer.
func (r *remote) shrunk(to int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.Source.Size()
	if now < r.floor || now >= to || now >= r.length {
		return false
	}
	r.length = now
	return true
}

// sync makes durable what was written before.
func (r *remote) sync() error {
	r.mu.Lock()
	length := r.length
	r.mu.Unlock()
	err := r.Source.Sync()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.floor = max(r.floor, length)
	} else {
		r.known = false // it may have become shorter
	}
	return err
}

// writeAt writes all of p.
func (r *remote) writeAt(p []byte, offset int64) error {
	if err := r.grow(offset + int64(len(p))); err != nil {
		return err
	}
	n, err := r.Source.WriteAt(p, offset)
	r.written.Add(int64(n))
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// grow makes the source as long as the volume once something is written beyond its end.
func (r *remote) grow(to int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	end, err := r.endLocked()
	if err != nil || to <= end {
		return err
	}
	if err := r.Source.Truncate(r.size); err != nil {
		return err
	}
	r.length = r.size
	return nil
}

var zeros [1 << 20]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if string(p[:n]) != string(zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// zero makes zeros, allocated ones with noHole.
func (r *remote) zero(offset, length int64, noHole bool) error {
	end, err := r.end()
	if err != nil {
		return err
	}
	length = min(length, end-offset)
	for noHole && length > 0 {
		n := min(length, int64(len(zeros)))
		if err := r.writeAt(zeros[:n], offset); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	if length <= 0 {
		return nil
	}
	return r.Source.Discard(offset, length)
}

// nextData is the first range with data at or after offset, all there is when the source does not know better;
// io.EOF when there is none.
func (r *remote) nextData(offset int64) (start, end int64, err error) {
	length, err := r.end()
	if err != nil {
		return 0, 0, err
	}
	if offset >= length {
		return 0, 0, io.EOF
	}
	x, ok := r.Source.(repository.Extents)
	if !ok {
		return offset, length, nil
	}
	start, end, err = x.NextData(offset)
	if err == nil && (start < offset || end <= start) {
		return 0, 0, fault.Errorf(fault.Corrupt, "image: data from byte %d to %d looked for from %d", start, end, offset)
	}
	return start, min(end, length), err
}

const (
	firstPause = 50 * time.Millisecond
	lastPause  = 5 * time.Second
)

// patient does it again while the repository is unavailable, for as long as the volume's patience lasts.
func (v *volume) patient(ctx context.Context, do func() error) error {
	return v.patientFor(ctx, v.patience, do)
}

func (v *volume) patientFor(ctx context.Context, patience time.Duration, do func() error) error {
	deadline := time.Now().Add(patience)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := do()
		if err == nil || !fault.Is(err, fault.Unavailable) || time.Until(deadline) < pause || sleep(ctx, pause) != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
