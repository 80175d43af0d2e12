package agent

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/disk"
	"hayloft/internal/waiting"
	"hayloft/wire"
)

// logged is a log that can be read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// eventually waits until text gives what is right, at most for patience.
func eventually(t *testing.T, text func() string, right func(string) bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !right(text()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it stays at %q", text())
		}
	}
}

// TestWaitIsExplained: a preparation that stands still says what it waits for, in the report and in the log.
func TestWaitIsExplained(t *testing.T) {
	b := newBench(t)
	b.pace.wait, b.pace.waitLog = 5*time.Millisecond, 20*time.Millisecond
	var log logged
	b.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	next := make(chan struct{})
	b.w.prepare = func(ctx context.Context, _ disk.Request) error {
		ctx, done := waiting.On(ctx, "disk 1")
		_, found := waiting.On(ctx, "the lock of object data")
		<-next
		found()
		<-next
		done()
		<-next
		return nil
	}
	b.begin()
	defer b.stop()
	b.order(assignment(1, 1, goalRunning))
	step := func() string { return b.report(1).GetProgressStep() }
	ends := func(end string) func(string) bool { return func(s string) bool { return strings.HasSuffix(s, end) } }
	eventually(t, step, ends(" for disk 1: the lock of object data"))
	eventually(t, log.String, func(s string) bool {
		return strings.Contains(s, `msg="machine: still waiting" vm=1 for="disk 1: the lock of object data"`)
	})
	next <- struct{}{}
	eventually(t, step, ends(" for disk 1"))
	next <- struct{}{}
	eventually(t, step, func(s string) bool { return s == "" })
	next <- struct{}{}
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
}

// TestTurnIsExplained: so does one that waits for others.
func TestTurnIsExplained(t *testing.T) {
	b := newBench(t)
	b.pace.wait = 5 * time.Millisecond
	b.cfg.Prepares = 1
	next := make(chan struct{})
	b.w.prepare = func(context.Context, disk.Request) error { <-next; return nil }
	b.begin()
	defer b.stop()
	b.order(assignment(1, 1, goalRunning), assignment(2, 1, goalRunning))
	eventually(t, func() string { return b.report(1).GetProgressStep() + b.report(2).GetProgressStep() }, func(s string) bool {
		return strings.Contains(s, "its turn: the host prepares disks of 1 machines at a time")
	})
	close(next)
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	b.until(2, 1, wire.Phase_PHASE_RUNNING)
}
