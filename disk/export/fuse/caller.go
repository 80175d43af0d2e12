package fuse

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const callerInterval = 200 * time.Millisecond

// watchCaller ends a request, by stop, when the thread that waits for it is killed. interrupted is closed at the first
// signal of any kind, and disks are not interrupted by signals; so from then on the thread is looked at. It returns
// when ctx ends.
func watchCaller(ctx context.Context, interrupted <-chan struct{}, thread uint32, stop func()) {
	select {
	case <-ctx.Done():
		return
	case <-interrupted:
	}
	ticker := time.NewTicker(callerInterval)
	defer ticker.Stop()
	for {
		if isKilled(thread) {
			stop()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// isKilled tells whether a thread has SIGKILL pending; one in a namespace that cannot be seen from here has not.
func isKilled(thread uint32) bool {
	if thread == 0 {
		return false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return os.IsNotExist(err)
	}
	return hasKillPending(string(text))
}

func hasKillPending(status string) bool {
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && set&(1<<(uint(unix.SIGKILL)-1)) != 0 {
			return true
		}
	}
	return false
}
