package qemublock

import (
	"context"
	"errors"
	"io"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/disk/export/nbd"
	"hayloft/disk/repository"
)

// with runs one request, for as long as it may take.
func (d *Disk) with(f func(ctx context.Context, c *nbd.Client) error) error {
	child, err := d.wake()
	if err != nil {
		return err
	}
	defer d.mu.RUnlock()
	return d.ask(child, f)
}

func (d *Disk) ask(child *daemon, f func(ctx context.Context, c *nbd.Client) error) error {
	ctx, cancel := context.WithTimeout(d.ctx, d.options.Limit)
	defer cancel()
	err := f(ctx, d.client(child))
	d.used.Store(time.Now().UnixNano())
	return d.explain(child, ctx, err)
}

// explain says what an error of a request means. QEMU tells few apart: what is not known is trouble of the storage.
func (d *Disk) explain(child *daemon, ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case d.ctx.Err() != nil:
		return d.errorf(fault.Unavailable, "closed: %w", context.Cause(d.ctx))
	case child.isDead():
		return d.errorf(fault.Unavailable, "%w", child.why())
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return d.errorf(fault.Unavailable, "the storage has not answered for %v%s", d.options.Limit, child.said())
	}
	switch class := fault.ClassOf(err); class {
	case fault.Permission, fault.OutOfSpace, fault.Unsupported:
		return d.errorf(class, "%w%s", err, child.said())
	default:
		return d.errorf(fault.Unavailable, "%w%s", err, child.said())
	}
}

// ReadAt implements repository.Source.
func (d *Disk) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, d.errorf(fault.Invalid, "read at %d", offset)
	}
	n := max(0, min(int64(len(p)), d.Size()-offset))
	if n > 0 {
		err := d.with(func(ctx context.Context, c *nbd.Client) error { return c.Read(ctx, p[:n], offset) })
		if err != nil {
			return 0, err
		}
	} else if d.ctx.Err() != nil {
		return 0, d.errorf(fault.Unavailable, "closed: %w", context.Cause(d.ctx))
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (d *Disk) changeable(offset, length int64) error {
	switch {
	case !d.options.Writable:
		return d.errorf(fault.Permission, "opened for reading only")
	case offset < 0 || length < 0 || offset+length < offset:
		return d.errorf(fault.Invalid, "%d bytes at %d", length, offset)
	}
	return nil
}

// WriteAt implements repository.Target. What goes beyond the end makes it longer.
func (d *Disk) WriteAt(p []byte, offset int64) (int, error) {
	length := int64(len(p))
	if err := d.changeable(offset, length); err != nil || length == 0 {
		return 0, err
	}
	if offset+length > d.Size() {
		if err := d.Truncate(offset + length); err != nil && !fault.Is(err, fault.Invalid) { // another one made it longer still
			return 0, err
		}
	}
	err := d.with(func(ctx context.Context, c *nbd.Client) error { return c.Write(ctx, p, offset, false) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Discard implements repository.Target.
func (d *Disk) Discard(offset, length int64) error {
	if err := d.changeable(offset, length); err != nil {
		return err
	}
	// Beyond the end of the last sector nobody ever wrote.
	if length = min(length, d.Size()-offset); length <= 0 {
		return nil
	}
	return d.with(func(ctx context.Context, c *nbd.Client) error { return c.WriteZeroes(ctx, offset, length, false) })
}

// Sync implements repository.Target. What was acknowledged is with the storage, not in the child: when that is gone
// before it was asked, nothing is lost by it.
func (d *Disk) Sync() error {
	if err := d.changeable(0, 0); err != nil {
		return err
	}
	child, err := d.wake()
	if err != nil {
		return &repository.NotBegun{Err: err}
	}
	defer d.mu.RUnlock()
	return d.ask(child, func(ctx context.Context, c *nbd.Client) error { return c.Flush(ctx) })
}

// window is how much one question about extents is about.
const window = 1 << 30

// NextData implements repository.Extents.
func (d *Disk) NextData(offset int64) (start, end int64, err error) {
	start = -1
	for size := d.Size(); offset < size; offset += window {
		length, done := min(window, size-offset), false
		err := d.with(func(ctx context.Context, c *nbd.Client) error {
			return c.Extents(ctx, offset, length, func(e export.Extent) bool {
				switch {
				case !e.Zero && start < 0:
					start, end = e.Offset, e.Offset+e.Length
				case !e.Zero:
					end = e.Offset + e.Length
				case start >= 0:
					done = true
				}
				return !done
			})
		})
		if err != nil {
			return 0, 0, err
		}
		if start >= 0 { // what follows in the next window is found by the next question
			return start, end, nil
		}
	}
	return 0, 0, io.EOF
}
