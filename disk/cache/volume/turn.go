package volume

import (
	"context"

	"hayloft/cloud/fault"
)

// turn is a mutex for long work: who waits for it can give up.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take waits for the turn; fault.Unavailable when ctx ends first.
func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.As(fault.Unavailable, ctx.Err())
	}
}

func (t turn) give() { <-t }
