package blockd

import (
	"context"
	"sync"

	"hayloft/disk/export"
)

// pausable is a device that can be taken from those who use it, without an error for them: pause ends requests under
// way, and these and all later ones wait for ever. The process ends then, and its successor gets them.
type pausable struct {
	device export.Device
	ended  context.Context // by end, at the latest by pause
	end    context.CancelFunc
	mu     sync.RWMutex // held for writing from pause on
}

func newPausable(d export.Device) *pausable {
	p := &pausable{device: d}
	p.ended, p.end = context.WithCancel(context.Background())
	return p
}

func (p *pausable) pause() {
	p.end()
	p.mu.Lock()
}

// do does not return an error that came after end, unless the file is taken away or who asked is killed.
func (p *pausable) do(asked context.Context, f func(context.Context) error) error {
	if !p.mu.TryRLock() { // only pause locks it for writing
		<-asked.Done()
		return asked.Err()
	}
	ctx, cancel := context.WithCancel(asked)
	stop := context.AfterFunc(p.ended, cancel)
	err := f(ctx)
	stop()
	cancel()
	p.mu.RUnlock()
	if err != nil && p.ended.Err() != nil {
		<-asked.Done()
	}
	return err
}

func (p *pausable) Size() int64    { return p.device.Size() }
func (p *pausable) ReadOnly() bool { return p.device.ReadOnly() }

func (p *pausable) ReadAt(ctx context.Context, b []byte, offset int64) error {
	return p.do(ctx, func(ctx context.Context) error { return p.device.ReadAt(ctx, b, offset) })
}

func (p *pausable) WriteAt(ctx context.Context, b []byte, offset int64, fua bool) error {
	return p.do(ctx, func(ctx context.Context) error { return p.device.WriteAt(ctx, b, offset, fua) })
}

func (p *pausable) Flush(ctx context.Context) error { return p.do(ctx, p.device.Flush) }

func (p *pausable) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	return p.do(ctx, func(ctx context.Context) error { return p.device.Zero(ctx, offset, length, z) })
}

func (p *pausable) Prefetch(ctx context.Context, offset, length int64) error {
	return p.do(ctx, func(ctx context.Context) error { return p.device.Prefetch(ctx, offset, length) })
}

func (p *pausable) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	return p.do(ctx, func(ctx context.Context) error { return p.device.Extents(ctx, offset, length, yield) })
}
