// Package attempt repeats what may succeed the next time: requests to storage that is reached over a network.
package attempt

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"hayloft/cloud/fault"
)

// Patience says how long and how often.
type Patience struct {
	Stall    time.Duration // without a byte from the server
	Attempts int           // of one request, the first included
	First    time.Duration // pause after the first failure; it doubles
	Longest  time.Duration // pause, also when the server asks for more
}

// Default is for storage over a network that is well most of the time.
func Default() Patience {
	return Patience{Stall: 30 * time.Second, Attempts: 6, First: 200 * time.Millisecond, Longest: 10 * time.Second}
}

// progress is so many bytes that a request which brought them counts as a success for the number of attempts.
const progress = 256 << 10

// Transient is a failure that may be over soon.
type Transient struct {
	Err   error
	After time.Duration // that the server asks to wait; 0: it does not say
}

func (t *Transient) Error() string { return t.Err.Error() }

// Unwrap gives the cause.
func (t *Transient) Unwrap() error { return t.Err }

// Retry does f until it succeeds, fails with something else than a Transient or has failed too often; f says how many
// bytes it brought. What ends it is classified: fault.Unavailable for a Transient and for a deadline of ctx, with why the last attempt
// failed that ended before.
func Retry(ctx context.Context, p Patience, f func() (int, error)) error {
	var last error
	for failures := 0; ; {
		n, err := f()
		var t *Transient
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return endedAfter(ctx, last)
		case !errors.As(err, &t):
			return err
		}
		last = t.Err
		if failures++; n >= progress {
			failures = 1
		}
		if failures >= p.Attempts {
			return fault.Errorf(fault.Unavailable, "gave up after %d attempts: %w", failures, t.Err)
		}
		pause := min(p.First<<(failures-1), p.Longest)
		pause += rand.N(pause/4 + 1) // many hosts begin at the same time
		timer := time.NewTimer(max(pause, min(t.After, p.Longest)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return endedAfter(ctx, last)
		}
	}
}

// endedAfter is Ended, which says what the deadline was spent with.
func endedAfter(ctx context.Context, last error) error {
	if last != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.Errorf(fault.Unavailable, "no answer in time (%w): %w", context.Cause(ctx), last)
	}
	return Ended(ctx)
}

// Ended is the error of a ctx that has ended, classified.
func Ended(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.Errorf(fault.Unavailable, "no answer in time: %w", err)
	}
	return err
}
