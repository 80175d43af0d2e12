package base

import (
	"context"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

const shards = 8

// counter is apart from others in the processors' caches.
type counter struct {
	hits, misses atomic.Int64
	_            [112]byte
}

// reader is one machine's view of a base.
type reader struct {
	base    *base
	counter *counter
	touched func(chunk int)
	met     bitmap // chunks that touched was told of
	streams streams
}

var (
	_ export.Device = (*reader)(nil)
	_ export.Quick  = (*reader)(nil)
)

// Reader implements cache.Base.
func (b *base) Reader(touched func(chunk int)) export.Device {
	r := &reader{base: b, touched: touched, counter: &b.shard[b.readers.Add(1)%shards]}
	if touched != nil {
		r.met = newBitmap(b.chunks)
	}
	return r
}

func (r *reader) Size() int64    { return r.base.size }
func (r *reader) ReadOnly() bool { return true }

// within checks a range against the image.
func (r *reader) within(offset, length int64) error {
	if offset < 0 || length < 0 || length > r.base.size-offset {
		return fault.Errorf(fault.Invalid, "image %s: %d bytes at %d are not within its %d", r.base.name, length, offset, r.base.size)
	}
	return nil
}

// ReadAt implements export.Device.
func (r *reader) ReadAt(ctx context.Context, p []byte, offset int64) error {
	if err := r.within(offset, int64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	first, last := r.base.span(offset, len(p))
	r.touch(first, last)
	missed := !r.base.whole.Load() && !r.base.here.all(first, last)
	r.readAhead(offset, len(p), missed) // at the same time as this read
	n, err := r.base.read(ctx, p, offset)
	r.counter.misses.Add(int64(n))
	r.counter.hits.Add(int64(last - first + 1 - n))
	return err
}

// TryReadAt implements export.Quick.
func (r *reader) TryReadAt(p []byte, offset int64) (done bool, err error) {
	b := r.base
	if offset < 0 || int64(len(p)) > b.size-offset {
		return false, nil
	}
	if len(p) == 0 {
		return true, nil
	}
	first, last := b.span(offset, len(p))
	gen, before := b.gen.Load(), b.now() // before the bits
	if !b.present(first, last) {
		return false, nil
	}
	if n, err := b.data.ReadAt(p, offset); failed(n, len(p), err) || b.gen.Load() != gen || !b.held(before, first, last) {
		return false, nil
	}
	r.hit(first, last, offset, len(p))
	return true, nil
}

// TryWriteAt implements export.Quick.
func (r *reader) TryWriteAt([]byte, int64) (done bool, err error) { return false, nil }

// TryFile implements export.Quick. What may be evicted, or undone by a sync that fails, is not served so: a reply
// takes its time.
func (r *reader) TryFile(offset int64, length int) (fd uintptr, at int64, ok bool) {
	b := r.base
	if !b.hasFD || b.capacity > 0 || length <= 0 || offset < 0 || int64(length) > b.size-offset {
		return 0, 0, false
	}
	first, last := b.span(offset, length)
	if !b.present(first, last) || !b.whole.Load() && b.fresh.any(first, last) {
		return 0, 0, false
	}
	r.hit(first, last, offset, length)
	return b.fd, offset, true
}

func (r *reader) hit(first, last int, offset int64, length int) {
	r.touch(first, last)
	r.counter.hits.Add(int64(last - first + 1))
	if !r.base.whole.Load() {
		r.readAhead(offset, length, false)
	}
}

func (r *reader) touch(first, last int) {
	if r.touched == nil {
		return
	}
	for i := first; i <= last; i++ {
		if !r.met.set(i) {
			r.touched(i)
		}
	}
}

// WriteAt implements export.Device.
func (r *reader) WriteAt(context.Context, []byte, int64, bool) error { return r.refuse() }

// Zero implements export.Device.
func (r *reader) Zero(context.Context, int64, int64, export.ZeroFlags) error { return r.refuse() }

func (r *reader) refuse() error {
	return fault.Errorf(fault.Permission, "image %s is read-only", r.base.name)
}

// Flush implements export.Device.
func (r *reader) Flush(context.Context) error { return nil }

// Prefetch implements export.Device.
func (r *reader) Prefetch(ctx context.Context, offset, length int64) error {
	if err := r.within(offset, length); err != nil || length == 0 {
		return err
	}
	return r.base.bring(ctx, int(offset>>r.base.shift), int((offset+length-1)>>r.base.shift))
}

// Extents implements export.Device.
func (r *reader) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	if err := r.within(offset, length); err != nil || length == 0 {
		return err
	}
	x, end := r.base.index, offset+length
	last := int((end - 1) >> r.base.shift)
	for i := int(offset >> r.base.shift); i <= last; {
		zero, from := x.IsZero(i), offset
		for i++; i <= last && x.IsZero(i) == zero; i++ {
			if i&0xffff == 0 && ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		offset = min(end, int64(i)<<r.base.shift)
		if !yield(export.Extent{Offset: from, Length: offset - from, Hole: zero, Zero: zero}) {
			return nil
		}
	}
	return nil
}
