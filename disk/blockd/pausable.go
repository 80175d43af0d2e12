package blockd

import (
	"context"
	"sync"

	"hayloft/disk/export"
)

// pausable is a device that can be taken from those who use it, without an error for them: after pause, requests
// wait for ever. The process ends then, and its successor gets them.
type pausable struct {
	device export.Device
	mu     sync.RWMutex
}

func (p *pausable) pause() { p.mu.Lock() }

func (p *pausable) Size() int64    { return p.device.Size() }
func (p *pausable) ReadOnly() bool { return p.device.ReadOnly() }

func (p *pausable) ReadAt(ctx context.Context, b []byte, offset int64) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.device.ReadAt(ctx, b, offset)
}

func (p *pausable) WriteAt(ctx context.Context, b []byte, offset int64, fua bool) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.device.WriteAt(ctx, b, offset, fua)
}

func (p *pausable) Flush(ctx context.Context) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.device.Flush(ctx)
}

func (p *pausable) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.device.Zero(ctx, offset, length, z)
}

func (p *pausable) Prefetch(ctx context.Context, offset, length int64) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.device.Prefetch(ctx, offset, length)
}

func (p *pausable) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.device.Extents(ctx, offset, length, yield)
}
