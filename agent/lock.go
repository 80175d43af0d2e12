package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// lockPoll is how often a lock that somebody else holds is tried.
const lockPoll = 50 * time.Millisecond

// Lock makes the caller the only agent of the state directory, which must exist, until release. It comes before
// the drivers are opened: what looks to them like the remains of a dead agent may be another's work in progress.
// An agent that is just ending is waited for, up to limit; then the error is fault.Busy. The kernel releases
// the lock of an agent that was killed.
func Lock(ctx context.Context, stateDir string, limit time.Duration) (release func(), err error) {
	dir, err := os.Open(stateDir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			dir.Close()
			return nil, fmt.Errorf("state directory %s: lock: %w", stateDir, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			dir.Close()
			return nil, fault.Errorf(fault.Busy, "state directory %s: another agent uses it", stateDir)
		}
	}
}
