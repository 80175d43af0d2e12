package volume

import (
	"context"

	"hayloft/cloud/fault"
)

// apart does work with the source, which may hang, so that the caller need not wait for longer than ctx. The work
// goes on then, with bytes of its own.
func (v *volume) apart(ctx context.Context, c change, work func(context.Context, change) error) error {
	if ctx.Done() == nil {
		return work(v.life, c)
	}
	if err := ctx.Err(); err != nil {
		return fault.As(fault.Unavailable, err)
	}
	var buffer *[]byte
	if c.p != nil {
		buffer = v.buffer(len(c.p))
		copy(*buffer, c.p)
		c.p = *buffer
	}
	v.work.Add(1) // the caller is inside, so it is not zero
	done := make(chan error, 1)
	life, cancel := context.WithCancel(v.life)
	stop := context.AfterFunc(ctx, cancel)
	go func() {
		defer v.leave()
		defer cancel()
		defer stop()
		err := work(life, c)
		if buffer != nil && err == nil { // after an error the source may still read it
			v.buffers.Put(buffer)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		cancel() // before anybody learns that it was given up: what has not begun does not happen any more
		return fault.As(fault.Unavailable, ctx.Err())
	}
}

func (v *volume) buffer(n int) *[]byte {
	if b, ok := v.buffers.Get().(*[]byte); ok && cap(*b) >= n {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n)
	return &b
}
