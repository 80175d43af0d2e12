package blockd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/disk/repository"
	"hayloft/internal/ranges"
)

// sized are an image's bytes.
type sized interface {
	io.ReaderAt
	repository.Extents
	Size() int64
}

// direct is an export.Device without a cache. A repository that cannot be reached is waited for as long as patience says.
type direct struct {
	bytes    sized
	target   repository.Target // nil: read-only
	size     int64             // what the machine sees
	patience time.Duration

	changes ranges.Queue
	life    context.Context // until Close, or the end of the export
	end     context.CancelFunc
	mu      sync.Mutex
	closed  bool
	work    sync.WaitGroup
	idle    chan struct{} // closed when no work is left; nil before Close
}

var _ export.Device = (*direct)(nil)

func newDirect(ended context.Context, bytes sized, target repository.Target, size int64, patience time.Duration) *direct {
	if patience == 0 {
		patience = defaultPatience
	}
	d := &direct{bytes: bytes, target: target, size: size, patience: patience}
	d.life, d.end = context.WithCancel(ended)
	return d
}

func (d *direct) Size() int64    { return d.size }
func (d *direct) ReadOnly() bool { return d.target == nil }

const (
	directPause = 100 * time.Millisecond
	directMost  = 2 * time.Second
	// directClose is how long Close waits for a repository that does not answer.
	directClose = 30 * time.Second
)

// Close waits for what is under way: a write that is still to come must not meet the image of another. While the repository
// does not answer it is fault.Unavailable, and to be called again. The image stays open.
func (d *direct) Close() error {
	d.end()
	d.mu.Lock()
	d.closed = true
	if d.idle == nil {
		d.idle = make(chan struct{})
		go func() {
			d.work.Wait()
			close(d.idle)
		}()
	}
	d.mu.Unlock()
	limit := time.NewTimer(directClose)
	defer limit.Stop()
	select {
	case <-d.idle:
		return nil
	case <-limit.C:
		return fault.Errorf(fault.Unavailable, "close: the repository does not answer")
	}
}

func (d *direct) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.work.Add(1)
	}
	return !d.closed
}

var errDirectEnds = fault.Errorf(fault.Unavailable, "is ending")

// patiently carries f out until it does not fail for a repository that is away. f may go on when this has returned, so it
// must own what it touches; it is not begun any more then.
func (d *direct) patiently(ctx context.Context, f func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !d.enter() {
		return errDirectEnds
	}
	life, cancel := context.WithCancel(d.life)
	done := make(chan error, 1)
	go func() {
		defer d.work.Done()
		defer cancel()
		done <- d.persist(life, f)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		cancel()
		return ctx.Err()
	case <-d.life.Done():
		return errDirectEnds
	}
}

func (d *direct) persist(life context.Context, f func(context.Context) error) error {
	deadline := time.Now().Add(d.patience)
	for pause := directPause; ; pause = min(2*pause, directMost) {
		err := f(life)
		left := time.Until(deadline)
		if !fault.Is(err, fault.Unavailable) || left <= 0 {
			return err
		}
		wait := time.NewTimer(min(pause, left))
		select {
		case <-wait.C:
		case <-life.Done():
			wait.Stop()
			return err
		}
	}
}

func (d *direct) ReadAt(ctx context.Context, p []byte, offset int64) error {
	length := min(int64(len(p)), max(0, d.bytes.Size()-offset))
	clear(p[length:]) // beyond the image
	if length == 0 {
		return nil
	}
	var got []byte
	err := d.patiently(ctx, func(context.Context) error {
		own := make([]byte, length)
		n, err := d.bytes.ReadAt(own, offset)
		if int64(n) == length {
			got = own
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = fault.Errorf(fault.Corrupt, "ends at byte %d of %d", offset+int64(n), d.bytes.Size())
		}
		return err
	})
	if err == nil {
		copy(p, got)
	}
	return err
}

// change is patiently for a range of writable images. Those that overlap come one after the other: one that hangs, and that
// nobody waits for any more, must not come after what was written since.
func (d *direct) change(ctx context.Context, offset, length int64, f func(repository.Target) error) error {
	if d.target == nil {
		return fault.Errorf(fault.Permission, "is read-only")
	}
	return d.patiently(ctx, func(life context.Context) error {
		h, err := d.changes.Lock(life, offset, offset+length)
		if err != nil {
			return err
		}
		defer h.Unlock()
		return f(d.target)
	})
}

func (d *direct) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	own := bytes.Clone(p)
	err := d.change(ctx, offset, int64(len(p)), func(t repository.Target) error {
		_, err := t.WriteAt(own, offset)
		return err
	})
	if err == nil && fua {
		err = d.Flush(ctx)
	}
	return err
}

// Flush asks again only when the storage was not even asked: what another Sync lost, a second one does not bring back.
func (d *direct) Flush(ctx context.Context) error {
	if d.target == nil {
		return nil
	}
	var failed error
	err := d.patiently(ctx, func(context.Context) error {
		err := d.target.Sync()
		var notBegun *repository.NotBegun
		if err != nil && !errors.As(err, &notBegun) {
			failed = err
			return nil
		}
		return err
	})
	if err == nil {
		err = failed
	}
	return err
}

// zeroPiece is how many zeros are written at a time.
const zeroPiece = 1 << 20

func (d *direct) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	if z.NoHole && z.Fast {
		return fault.Errorf(fault.Unsupported, "zeros that take up space are written")
	}
	if !z.NoHole {
		if err := d.change(ctx, offset, length, func(t repository.Target) error { return t.Discard(offset, length) }); err != nil {
			return err
		}
	}
	for z.NoHole && length > 0 {
		n := min(length, zeroPiece)
		if err := d.WriteAt(ctx, make([]byte, n), offset, false); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	if z.FUA {
		return d.Flush(ctx)
	}
	return nil
}

// Prefetch does nothing: there is no cache.
func (d *direct) Prefetch(context.Context, int64, int64) error { return nil }

func (d *direct) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	end := offset + length
	for offset < end {
		var start, stop int64
		err := d.patiently(ctx, func(context.Context) error {
			a, b, err := d.bytes.NextData(offset)
			switch {
			case errors.Is(err, io.EOF):
				a, b, err = end, end, nil
			case err == nil && (a < offset || b <= a):
				err = fault.Errorf(fault.Corrupt, "data from byte %d to %d, looked for from %d", a, b, offset)
			}
			if err == nil {
				start, stop = a, b
			}
			return err
		})
		if err != nil {
			return err
		}
		start, stop = min(start, end), min(stop, end)
		if start > offset && !yield(export.Extent{Offset: offset, Length: start - offset, Hole: true, Zero: true}) {
			return nil
		}
		if stop > start && !yield(export.Extent{Offset: start, Length: stop - start}) {
			return nil
		}
		offset = stop
	}
	return nil
}
