// Package lockfile has one process at a time use something, by a lock on a file or directory that the kernel releases
// when the process dies.
package lockfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// poll is how often a lock that somebody else holds is tried.
const poll = 5 * time.Millisecond

// Forever is a limit that is none.
const Forever = time.Duration(-1)

// passing is how long one is waited for who need not have it: a program that its last owner was just about to start has
// a copy of everything open, until it is executed.
const passing = 500 * time.Millisecond

// Take locks an open file or directory until that is closed. Another who has it is waited for until ctx ends, and up to
// limit, 0 for no longer than one who is only passing may have it; then the error is fault.Busy.
func Take(ctx context.Context, file *os.File, limit time.Duration) error {
	if limit >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(limit, passing))
		defer cancel()
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("%s: lock: %w", file.Name(), err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fault.Errorf(fault.Busy, "%s: locked by another process: %w", file.Name(), ctx.Err())
		}
	}
}
