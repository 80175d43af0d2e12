package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/lockfile"
)

// Lock makes the caller the only agent of the state directory, which must exist, until release. It comes before
// the drivers are opened: what looks to them like the remains of a dead agent may be another's work in progress.
// An agent that is just ending is waited for, up to limit; then the error is fault.Busy. The kernel releases
// the lock of an agent that was killed.
func Lock(ctx context.Context, stateDir string, limit time.Duration) (release func(), err error) {
	dir, err := os.Open(stateDir)
	if err != nil {
		return nil, err
	}
	if err := lockfile.Take(ctx, dir, limit); err != nil {
		dir.Close()
		if fault.Is(err, fault.Busy) {
			return nil, fault.Errorf(fault.Busy, "state directory %s: another agent uses it", stateDir)
		}
		return nil, fmt.Errorf("state directory %s: %w", stateDir, err)
	}
	return func() { dir.Close() }, nil
}
