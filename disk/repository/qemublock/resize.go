package qemublock

import (
	"context"

	"hayloft/cloud/fault"
)

// Truncate implements repository.Target: fault.Unsupported when the driver cannot make it longer.
func (d *Disk) Truncate(size int64) error {
	if err := d.changeable(0, size); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch now := d.Size(); {
	case size < now:
		return d.errorf(fault.Invalid, "cannot be cut from %d to %d bytes", now, size)
	case size == now:
		return nil
	}
	if err := d.resize(size); err != nil {
		return err
	}
	d.size.Store(size)
	return nil
}

// Cut makes it shorter, for those who made it longer than it came to be: fault.Unsupported when the driver cannot.
func (d *Disk) Cut(size int64) error {
	if err := d.changeable(0, size); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if size >= d.Size() {
		return nil
	}
	if err := d.resize(size); err != nil {
		return err
	}
	d.size.Store(size)
	return nil
}

// resize changes the node: the size of an export is fixed, so it is made anew. The caller holds mu.
func (d *Disk) resize(size int64) error {
	if d.closed || d.child == nil || d.child.isDead() {
		if d.failed == nil {
			d.failed = d.errorf(fault.Unavailable, "closed")
			if d.child != nil {
				d.failed = d.errorf(fault.Unavailable, "%w", d.child.why())
			}
		}
		return d.failed
	}
	ctx, cancel := context.WithTimeout(d.ctx, d.options.Limit)
	defer cancel()
	child := d.child
	fail := func(err error) error {
		err = d.explain(child, ctx, err)
		child.kill() // in the middle of it nobody knows what there is
		<-child.dead // nor may anybody use it, who finds no connection
		return err
	}
	if err := child.unexport(ctx); err != nil {
		return fail(err)
	}
	resized := child.monitor.run(ctx, "block_resize", blockResize{NodeName: nodeName, Size: size}, nil)
	if resized != nil && ctx.Err() != nil {
		return fail(resized)
	}
	if err := child.export(ctx, d.options); err != nil {
		return fail(err)
	}
	if resized != nil {
		class := classOf(resized)
		return d.errorf(class, "cannot be changed from %d to %d bytes: %w", d.Size(), size, resized)
	}
	return nil
}
