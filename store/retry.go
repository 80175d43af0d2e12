package store

import (
	"context"
	"math/rand/v2"
	"time"

	"hayloft/cloud/fault"
)

// The waits of Retry grow from firstWait by doubling up to lastWait; with the jitter all tries together
// take about four seconds.
const (
	retryTries = 40
	firstWait  = time.Millisecond
	lastWait   = 200 * time.Millisecond
)

// Retry calls fn until it returns something else than an error of class fault.Busy, with growing waits of
// random length between the calls. It gives up with fn's last error after 40 calls, or when ctx ends with
// an error that names both. fn must read again what it compares with.
func Retry(ctx context.Context, fn func() error) error {
	timer := time.NewTimer(0)
	<-timer.C
	wait := firstWait
	for try := 1; ; try++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		err := fn()
		if !fault.Is(err, fault.Busy) || try == retryTries {
			return err
		}
		timer.Reset(1 + rand.N(wait))
		wait = min(2*wait, lastWait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return &interrupted{context.Cause(ctx), err}
		}
	}
}

// interrupted is a context's end in the midst of tries, with the error of the last one.
type interrupted struct{ cause, last error }

func (e *interrupted) Error() string   { return e.cause.Error() + ", after: " + e.last.Error() }
func (e *interrupted) Unwrap() []error { return []error{e.cause, e.last} }
