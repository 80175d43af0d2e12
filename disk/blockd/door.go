package blockd

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

// door is an export's device as a presenter sees it: there from the beginning, while what is behind it is opened.
// Requests wait for that, at most patience. It counts bytes.
type door struct {
	size     int64
	readOnly bool
	patience time.Duration
	behind   atomic.Pointer[behind]
	content  atomic.Pointer[func() *os.File] // see whole; nil: none

	mu      sync.Mutex
	err     error         // why it does not open, when waiting is of no use
	changed chan struct{} // closed with each change of err and behind

	read, written atomic.Int64
}

type behind struct {
	device export.Device
	quick  export.Quick // nil: it has none
}

var (
	_ export.Device = (*door)(nil)
	_ export.Quick  = (*door)(nil)
)

const defaultPatience = 10 * time.Minute

func newDoor(size int64, readOnly bool, patience time.Duration) *door {
	if patience == 0 {
		patience = defaultPatience
	}
	return &door{size: size, readOnly: readOnly, patience: patience, changed: make(chan struct{})}
}

// open lets requests through.
func (d *door) open(device export.Device) {
	quick, _ := device.(export.Quick)
	d.change(func() {
		d.behind.Store(&behind{device, quick})
		d.err = nil
	})
}

// refuse has requests fail, until open.
func (d *door) refuse(err error) { d.change(func() { d.err = err }) }

func (d *door) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *door) device(ctx context.Context) (export.Device, error) {
	if b := d.behind.Load(); b != nil {
		return b.device, nil
	}
	limit := time.NewTimer(d.patience)
	defer limit.Stop()
	for {
		d.mu.Lock()
		err, changed := d.err, d.changed
		d.mu.Unlock()
		if b := d.behind.Load(); b != nil {
			return b.device, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, fault.Errorf(fault.Unavailable, "not open after %v", d.patience)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// wholeFile implements whole.
func (d *door) wholeFile() *os.File {
	if f := d.content.Load(); f != nil {
		return (*f)()
	}
	return nil
}

func (d *door) Size() int64    { return d.size }
func (d *door) ReadOnly() bool { return d.readOnly }

func (d *door) ReadAt(ctx context.Context, p []byte, offset int64) error {
	device, err := d.device(ctx)
	if err != nil {
		return err
	}
	if err = device.ReadAt(ctx, p, offset); err == nil {
		d.read.Add(int64(len(p)))
	}
	return err
}

func (d *door) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	device, err := d.device(ctx)
	if err != nil {
		return err
	}
	if err = device.WriteAt(ctx, p, offset, fua); err == nil {
		d.written.Add(int64(len(p)))
	}
	return err
}

func (d *door) Flush(ctx context.Context) error {
	device, err := d.device(ctx)
	if err != nil {
		return err
	}
	return device.Flush(ctx)
}

func (d *door) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	device, err := d.device(ctx)
	if err != nil {
		return err
	}
	return device.Zero(ctx, offset, length, z)
}

func (d *door) Prefetch(ctx context.Context, offset, length int64) error {
	device, err := d.device(ctx)
	if err != nil {
		return err
	}
	return device.Prefetch(ctx, offset, length)
}

func (d *door) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	device, err := d.device(ctx)
	if err != nil {
		return err
	}
	return device.Extents(ctx, offset, length, yield)
}

func (d *door) TryReadAt(p []byte, offset int64) (bool, error) {
	b := d.behind.Load()
	if b == nil || b.quick == nil {
		return false, nil
	}
	done, err := b.quick.TryReadAt(p, offset)
	if done && err == nil {
		d.read.Add(int64(len(p)))
	}
	return done, err
}

func (d *door) TryWriteAt(p []byte, offset int64) (bool, error) {
	b := d.behind.Load()
	if b == nil || b.quick == nil {
		return false, nil
	}
	done, err := b.quick.TryWriteAt(p, offset)
	if done && err == nil {
		d.written.Add(int64(len(p)))
	}
	return done, err
}

func (d *door) TryFile(offset int64, length int) (fd uintptr, at int64, ok bool) {
	b := d.behind.Load()
	if b == nil || b.quick == nil {
		return 0, 0, false
	}
	if fd, at, ok = b.quick.TryFile(offset, length); ok {
		d.read.Add(int64(length))
	}
	return fd, at, ok
}
