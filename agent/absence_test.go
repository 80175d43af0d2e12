package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/hypervisor"
	"hayloft/wire"
)

// TestEndedWhileAway: what happened to a machine while no agent was there is reported by the next one.
func TestEndedWhileAway(t *testing.T) {
	for status, phase := range map[hypervisor.Status]wire.Phase{hypervisor.Off: wire.Phase_PHASE_OFF, hypervisor.Crashed: wire.Phase_PHASE_CRASHED} {
		b := newBench(t)
		b.begin()
		origins["running"](b)
		b.stop()
		b.w.end(1, status, "it was night")
		b.begin()
		if report := b.until(1, 1, phase); report.Reason != "it was night" {
			t.Errorf("reason %q", report.Reason)
		}
	}
}

func TestOrphansAreLeftAlone(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	b.order() // the server forgot machine 1
	b.idle()
	b.w.mu.Lock()
	b.w.disks[8], b.w.ports["one-9-0"] = "found", true
	b.w.mu.Unlock()
	check := func() {
		t.Helper()
		orphans, err := b.agent.orphans(context.Background())
		if err != nil || !slices.Equal(orphans, []int64{1, 8, 9}) {
			t.Errorf("orphans %v, %v", orphans, err)
		}
	}
	check()
	b.stop()
	b.begin()
	b.order()
	b.idle()
	check()
	if got := b.w.happened(1); got != "prepare start" {
		t.Errorf("done: %s", got)
	}
	b.order(assignment(1, 2, goalRunning)) // the server knows it again
	b.until(1, 2, wire.Phase_PHASE_RUNNING)
	if got := b.w.happened(1); got != "prepare start" {
		t.Errorf("done: %s", got)
	}
}

// TestRecordsLost: a running machine is adopted even when the agent's database is gone.
func TestRecordsLost(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	b.stop()
	if err := os.Remove(filepath.Join(b.cfg.StateDir, "agent.db")); err != nil {
		t.Fatal(err)
	}
	b.begin()
	b.order(assignment(1, 1, goalRunning))
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	if got := b.w.happened(1); got != "prepare start" {
		t.Errorf("done: %s", got)
	}
}

func TestBlindnessIsNoFailure(t *testing.T) {
	b := newBench(t)
	b.pace.usage = 5 * time.Millisecond
	var blind atomic.Bool
	b.w.list = func() error {
		if blind.Load() {
			return errors.New("cannot look")
		}
		return nil
	}
	b.begin()
	origins["running"](b)
	blind.Store(true)
	b.order(assignment(1, 2, goalSuspended))
	b.idle()
	if phase := b.report(1).Phase; phase != wire.Phase_PHASE_RUNNING {
		t.Errorf("phase %v", phase)
	}
	blind.Store(false)
	b.until(1, 2, wire.Phase_PHASE_SUSPENDED)
}

// TestLongAbsenceStartsNothing: after a long absence a machine is not started before the server is heard.
func TestLongAbsenceStartsNothing(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["booting"](b)
	b.stop()
	b.w.start = nil
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(heardPath(b.cfg.StateDir), old, old); err != nil {
		t.Fatal(err)
	}
	b.begin()
	b.idle()
	if got := b.w.happened(1); got != "prepare" {
		t.Errorf("done: %s", got)
	}
	b.order(assignment(1, 1, goalRunning))
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	b.order(assignment(1, 2, goalRunning))
	b.until(1, 2, wire.Phase_PHASE_RUNNING)
}

// TestWhatACrashBroughtBackIsSwept: of a machine that is gone nothing stays, also when the host's crash undid that.
func TestWhatACrashBroughtBackIsSwept(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["gone"](b)
	b.idle()
	b.stop()
	b.w.disks[1], b.w.ports["one-1-0"] = "back", true
	b.begin()
	b.idle()
	if got := b.w.happened(1); got != "prepare start shutdown drain remove" {
		t.Errorf("done: %s", got)
	}
	if err := b.w.nothingLeft(); err != nil {
		t.Error(err)
	}
}
