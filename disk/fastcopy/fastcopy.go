// Package fastcopy copies a whole image onto a volume or into a file as fast as source and target go: it reads ahead in
// parallel, moves nothing that is zero, checks each chunk against the image's index on its way, and writes past the page
// cache, so that what machines have there stays. A Limiter has several copies take turns.
package fastcopy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
	"hayloft/image"
)

// Spec is one copy.
type Spec struct {
	// Source is read by several goroutines at once, in blocks. Holes are not read of one that is image.Extents too.
	Source io.ReaderAt
	// Index has the digest of each chunk: all that is written was checked, chunks of zeros are not even read. nil: nothing
	// is checked, and Size counts.
	Index *image.Index
	// Size in bytes; 0: that of the Index.
	Size int64
	// Zeros says that all of the target reads as zeros: zeros need not be written.
	Zeros bool
	// Depth is how many blocks are on their way at once, Block the size of one in bytes; 0: 8, and 4 MiB.
	Depth, Block int
	// Report may be nil. It is called from one goroutine at a time, some times a second and at the end.
	Report func(Progress)
}

const (
	defaultDepth = 8
	defaultBlock = 4 << 20
	maxBlock     = 64 << 20
	maxDepth     = 256
	// grain is what blocks are multiples of, and zeros are looked for in, without an index.
	grain = 64 << 10
	// attempts to read a chunk that does not match its digest.
	attempts = 3
)

// Result of a copy, in bytes.
type Result struct {
	Read    int64 // from the source
	Written int64 // data to the target
	Zeroed  int64 // made zeros on the target, without data being written where it can
	Skipped int64 // zeros not written
}

// ToPath copies to a block device or file that is there; a file that is shorter is made as long. When it returns without
// error all is durable. After an error the target holds a part. Errors: fault.Corrupt names the chunk that did not match
// in several attempts, fault.Invalid for a device that is too short, fault.Busy for one that is in use by the kernel,
// fault.OutOfSpace; and those of the source.
func ToPath(ctx context.Context, path string, s Spec) (Result, error) {
	if err := s.check(); err != nil {
		return Result{}, fmt.Errorf("copy to %s: %w", path, err)
	}
	t, err := openTarget(path, s.Size)
	if err != nil {
		return Result{}, err
	}
	r, err := s.copy(ctx, t)
	if err == nil {
		err = t.sync()
	}
	if err = errors.Join(err, t.Close()); err != nil {
		return r, fault.Errorf(fault.ClassOf(err), "copy to %s: %w", path, err)
	}
	return r, nil
}

// ToWriter copies to what takes writes of several goroutines at once, such as a new object of a repository. Nothing is
// made durable.
func ToWriter(ctx context.Context, w io.WriterAt, s Spec) (Result, error) {
	if err := s.check(); err != nil {
		return Result{}, err
	}
	return s.copy(ctx, &writerTarget{w})
}

func (s *Spec) check() error {
	if s.Index != nil {
		if s.Size == 0 {
			s.Size = s.Index.Length()
		}
		if s.Size != s.Index.Length() {
			return fault.Errorf(fault.Invalid, "size %d, but the chunk index is of %d bytes", s.Size, s.Index.Length())
		}
	}
	if s.Depth == 0 {
		s.Depth = defaultDepth
	}
	if s.Block == 0 {
		s.Block = defaultBlock
	}
	unit := s.unit()
	s.Block = max(1, s.Block/unit) * unit
	if s.Size < 0 || s.Depth < 0 || s.Depth > maxDepth || s.Block < 0 || s.Block > max(maxBlock, unit) {
		return fault.Errorf(fault.Invalid, "size %d, depth %d, block %d", s.Size, s.Depth, s.Block)
	}
	return nil
}

// unit is what the copy is planned in, in bytes.
func (s *Spec) unit() int {
	if s.Index != nil {
		return s.Index.ChunkSize()
	}
	return grain
}

// counts are those of a Result, while it goes on.
type counts struct{ read, written, zeroed, skipped atomic.Int64 }

func (c *counts) result() Result {
	return Result{Read: c.read.Load(), Written: c.written.Load(), Zeroed: c.zeroed.Load(), Skipped: c.skipped.Load()}
}

func (s *Spec) copy(ctx context.Context, t target) (Result, error) {
	var c counts
	p := newPlan(s)
	m := newMeter(s.Report, p.total)
	group, ctx := errgroup.WithContext(ctx)
	for range s.Depth {
		group.Go(func() error {
			w := worker{spec: s, target: t, counts: &c, meter: m}
			for {
				if err := ctx.Err(); err != nil {
					return err
				}
				one, err := p.next()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if err := w.do(one); err != nil {
					return err
				}
			}
		})
	}
	err := group.Wait()
	if err == nil {
		m.end()
	}
	return c.result(), err
}

// worker copies one run after the other.
type worker struct {
	spec   *Spec
	target target
	counts *counts
	meter  *meter
	buffer []byte
}

// allocated memory begins at a page, as direct writing needs it. It is the collector's: a source that did not answer in time may
// write to it when nobody waits any more.
func (w *worker) allocate() {
	if w.buffer != nil {
		return
	}
	room := make([]byte, w.spec.Block+align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(room)))) & (align - 1)
	w.buffer = room[skip:][:w.spec.Block]
}

func (w *worker) do(r run) error {
	if r.zero {
		if w.spec.Zeros {
			w.counts.skipped.Add(r.length)
			w.meter.add(r.counted)
			return nil
		}
		if err := w.target.zero(r.offset, r.length); err != nil {
			return err
		}
		w.counts.zeroed.Add(r.length)
		w.meter.add(r.counted)
		return nil
	}
	w.allocate()
	data := w.buffer[:r.length]
	if err := w.read(data, r.offset); err != nil {
		return err
	}
	if w.spec.Index != nil {
		if err := w.verify(data, r.offset); err != nil {
			return err
		}
		if err := w.write(data, r.offset); err != nil {
			return err
		}
	} else if err := w.writeSparse(data, r.offset); err != nil {
		return err
	}
	w.meter.add(r.counted)
	return nil
}

func (w *worker) read(p []byte, offset int64) error {
	n, err := w.spec.Source.ReadAt(p, offset)
	w.counts.read.Add(int64(n))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fault.Errorf(fault.Corrupt, "the source ends at byte %d of %d", offset+int64(n), w.spec.Size)
	}
	return err
}

// verify reads chunks that do not match again.
func (w *worker) verify(data []byte, offset int64) error {
	index := w.spec.Index
	first := int(offset / int64(index.ChunkSize()))
	for i := first; ; i++ {
		at, length := int64(0), 0
		if i < index.Chunks() {
			at, length = index.Range(i)
		}
		if i == index.Chunks() || at >= offset+int64(len(data)) {
			return nil
		}
		chunk := data[at-offset:][:length]
		err := index.VerifyChunk(i, chunk)
		for try := 1; err != nil && try < attempts; try++ {
			if err := w.read(chunk, at); err != nil {
				return err
			}
			err = index.VerifyChunk(i, chunk)
		}
		if err != nil {
			return err
		}
	}
}

func (w *worker) write(p []byte, offset int64) error {
	if len(p) == 0 {
		return nil
	}
	if err := w.target.write(p, offset); err != nil {
		return err
	}
	w.counts.written.Add(int64(len(p)))
	return nil
}

// writeSparse leaves out zeros where the target has them.
func (w *worker) writeSparse(p []byte, offset int64) error {
	if !w.spec.Zeros {
		return w.write(p, offset)
	}
	from := 0
	for at := 0; at < len(p); at += grain {
		end := min(at+grain, len(p))
		if !isZero(p[at:end]) {
			continue
		}
		if err := w.write(p[from:at], offset+int64(from)); err != nil {
			return err
		}
		w.counts.skipped.Add(int64(end - at))
		from = end
	}
	return w.write(p[from:], offset+int64(from))
}
