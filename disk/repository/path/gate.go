package path

import (
	"context"
	"errors"
	"time"

	"hayloft/cloud/fault"
)

// gate bounds what a hanging mount can take with it: an operation runs in a worker of its own, the caller
// leaves when its context ends or the limit passes, and only so many workers may hang.
type gate struct {
	name  string
	slots chan struct{}
	limit time.Duration
}

const (
	maxHanging   = 32
	defaultLimit = 60 * time.Second // one system call on a storage that is well takes far less
)

func newGate(name string) *gate {
	return &gate{name: name, slots: make(chan struct{}, maxHanging), limit: defaultLimit}
}

// run does f and returns its error. When f does not come back in time the worker is left to the kernel, which
// ends it when the storage answers or is given up; f must own whatever it touches.
func (g *gate) run(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return g.gone(err)
	}
	timer := time.NewTimer(g.limit)
	defer timer.Stop()
	select {
	case g.slots <- struct{}{}:
	case <-ctx.Done():
		return g.gone(ctx.Err())
	case <-timer.C:
		return fault.Errorf(fault.Unavailable, "%s: storage does not answer, %d operations are waiting for it", g.name, maxHanging)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-g.slots }()
		done <- f()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return g.gone(ctx.Err())
	case <-timer.C:
		return fault.Errorf(fault.Unavailable, "%s: storage has not answered for %v", g.name, g.limit)
	}
}

func (g *gate) gone(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fault.Errorf(fault.Unavailable, "%s: storage did not answer in time: %w", g.name, err)
	}
	return err
}
