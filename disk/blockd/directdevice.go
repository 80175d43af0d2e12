package blockd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/disk/repository"
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
	ended    context.Context // with the export
}

var _ export.Device = (*direct)(nil)

func (d *direct) Size() int64    { return d.size }
func (d *direct) ReadOnly() bool { return d.target == nil }

const (
	directPause = 100 * time.Millisecond
	directMost  = 2 * time.Second
)

// patiently carries f out until it does not fail for a repository that is away. f may go on when this has returned, so it
// must own what it touches.
func (d *direct) patiently(ctx context.Context, f func() error) error {
	limit := time.NewTimer(d.patience)
	defer limit.Stop()
	for pause := directPause; ; pause = min(2*pause, directMost) {
		done := make(chan error, 1)
		go func() { done <- f() }()
		var err error
		select {
		case err = <-done:
		case <-ctx.Done():
			return ctx.Err()
		case <-d.ended.Done():
			return fault.Errorf(fault.Unavailable, "is ending")
		}
		if !fault.Is(err, fault.Unavailable) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-limit.C:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-d.ended.Done():
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
	err := d.patiently(ctx, func() error {
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

// change is patiently for writable images.
func (d *direct) change(ctx context.Context, f func(repository.Target) error) error {
	if d.target == nil {
		return fault.Errorf(fault.Permission, "is read-only")
	}
	return d.patiently(ctx, func() error { return f(d.target) })
}

func (d *direct) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	own := bytes.Clone(p)
	err := d.change(ctx, func(t repository.Target) error {
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
	err := d.patiently(ctx, func() error {
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
		if err := d.change(ctx, func(t repository.Target) error { return t.Discard(offset, length) }); err != nil {
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
		err := d.patiently(ctx, func() error {
			a, b, err := d.bytes.NextData(offset)
			if errors.Is(err, io.EOF) {
				a, b, err = end, end, nil
			}
			if err == nil {
				start, stop = a, b
			}
			return err
		})
		if err != nil {
			return err
		}
		start, stop = min(max(start, offset), end), min(max(stop, start), end)
		if start > offset && !yield(export.Extent{Offset: offset, Length: start - offset, Hole: true, Zero: true}) {
			return nil
		}
		if stop > start && !yield(export.Extent{Offset: start, Length: stop - start}) {
			return nil
		}
		offset = max(stop, start)
	}
	return nil
}
