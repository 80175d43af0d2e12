package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/hypervisor"
	"hayloft/wire"
)

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func away(context.Context) error { return fault.Errorf(fault.Unavailable, "datastore 1 is away") }

// While a machine drains it is STOPPING, and says how far it is.
func TestDrainIsShown(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	entered, goOn := make(chan struct{}), make(chan struct{})
	b.w.set(func() {
		b.w.settle = func(context.Context) error {
			close(entered)
			<-goOn
			return nil
		}
	})
	b.order(assignment(1, 2, goalOff))
	<-entered
	report := b.report(1)
	if report.Phase != wire.Phase_PHASE_STOPPING || report.ProgressStep != "drain disk 0" || report.ProgressTotal != 3<<20 {
		t.Errorf("while it drains: %v", report)
	}
	close(goOn)
	report = b.until(1, 2, wire.Phase_PHASE_OFF)
	if report.Warning != "" || len(report.Caches) != 1 || report.Caches[0].Undrained != 0 || report.Caches[0].Mode != "BACK" || report.ProgressStep != "" {
		t.Errorf("after it: %v", report)
	}
}

// A repository that cannot be reached keeps no machine from being off: it is told what is missing, until the cache has
// drained by itself.
func TestPoweroffWithTheRepositoryAway(t *testing.T) {
	b := newBench(t)
	b.pace.usage, b.pace.drainTry = 5*time.Millisecond, 2*time.Second
	b.begin()
	origins["running"](b)
	b.w.set(func() { b.w.settle = away })
	b.order(assignment(1, 2, goalOff))
	report := b.until(1, 2, wire.Phase_PHASE_OFF)
	for _, word := range []string{"disk 0 has 3.0 MB", "tiny", "datastore 1 is away"} {
		contains(t, report.Warning, word)
	}
	b.idle()
	b.w.set(func() { b.w.settle = nil; delete(b.w.undrained, 1) }) // as the data path does by itself
	for b.report(1).Warning != "" {
		<-b.agent.bell
	}
	if report := b.report(1); report.Phase != wire.Phase_PHASE_OFF {
		t.Errorf("in the end: %v", report)
	}
	b.idle()
	b.order(assignment(1, 3, goalRunning))
	b.until(1, 3, wire.Phase_PHASE_RUNNING)
}

// What would take the files away is an error instead, and is done when it is asked for again.
func TestNothingUndrainedIsRemoved(t *testing.T) {
	for step, goal := range map[wire.Step]wire.Goal{wire.Step_STEP_STASH: goalStashed, wire.Step_STEP_REMOVE: goalGone} {
		t.Run(step.String(), func(t *testing.T) {
			b := newBench(t)
			b.pace.drainTry = 100 * time.Millisecond
			b.begin()
			origins["running"](b)
			b.w.set(func() { b.w.settle = away })
			b.order(assignment(1, 2, goal, hard))
			report := b.until(1, 2, wire.Phase_PHASE_FAILED)
			if report.FailedStep != step || report.ErrorClass != "unavailable" {
				t.Errorf("failed: %v", report)
			}
			contains(t, report.Error, "disk 0 has 3.0 MB")
			contains(t, report.Error, "datastore 1 is away")
			b.idle()
			if got := b.w.happened(1); strings.Contains(got, "remove") || strings.Contains(got, "stash") || len(b.w.disks) != 1 {
				t.Errorf("done: %s, disks %v", got, b.w.disks)
			}
			b.w.set(func() { b.w.settle = nil })
			b.order(assignment(1, 3, goal, hard))
			b.until(1, 3, wire.Phase_PHASE_GONE, wire.Phase_PHASE_STASHED)
			contains(t, b.w.happened(1), "kill drain ")
		})
	}
}

// A machine that is deleted, whose storage is away, is not removed again as fast as the server orders it.
func TestRemovalThatFailsIsPaced(t *testing.T) {
	b := newBench(t)
	b.pace.drainTry, b.pace.retryMin, b.pace.retryMax = time.Millisecond, time.Hour, time.Hour
	b.begin()
	origins["running"](b)
	tries := 0
	b.w.set(func() {
		b.w.settle = func(context.Context) error { tries++; return fault.Errorf(fault.Corrupt, "datastore 1 has gone mad") }
	})
	b.order(assignment(1, 2, goalGone, hard))
	b.until(1, 2, wire.Phase_PHASE_FAILED)
	b.idle()
	b.order(assignment(1, 3, goalGone, hard))
	waits := func() bool {
		b.agent.mu.Lock()
		defer b.agent.mu.Unlock()
		m := b.agent.machines[1]
		return m.assignment.Epoch == 3 && m.working && m.doing == awaitingRetry
	}
	for limit := time.Now().Add(patience); !waits(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("it does not wait")
		}
	}
	b.stop()
	if tries != 1 {
		t.Errorf("%d tries", tries)
	}
	b.pace = quick
	b.w.set(func() { b.w.settle = nil })
	b.begin()
	b.until(1, 3, wire.Phase_PHASE_GONE)
}

// What a drain waited for in vain is said with its end.
func TestDrainSaysWhatItWaitedFor(t *testing.T) {
	b := newBench(t)
	b.pace.drain, b.pace.drainTry = 20*time.Millisecond, 20*time.Millisecond
	b.begin()
	origins["running"](b)
	b.w.set(func() {
		b.w.away = "datastore 1 (nas): connection refused"
		b.w.settle = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	})
	b.order(assignment(1, 2, goalGone))
	report := b.until(1, 2, wire.Phase_PHASE_FAILED)
	contains(t, report.Error, "disk 0 has 3.0 MB")
	contains(t, report.Error, "(datastore 1 (nas): connection refused)")
	contains(t, report.Error, "nothing was drained")
	b.w.set(func() { b.w.settle, b.w.away = nil, "" })
}

// Writes to an image that was taken from the machine can never be drained: they go with it, and with nothing else.
func TestMachineGoesWhoseImageWasTaken(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	b.w.set(func() {
		b.w.settle = func(context.Context) error {
			b.w.set(func() { delete(b.w.undrained, 1) })
			return fault.Errorf(fault.Busy, "image tiny belongs to machine 9")
		}
	})
	b.order(assignment(1, 2, goalGone))
	b.until(1, 2, wire.Phase_PHASE_GONE)
}

// A drain that says nothing for long ends the wait; one that goes on slowly does not.
func TestDrainThatHangs(t *testing.T) {
	ctx := context.Background()
	s := newStall(ctx, 20*time.Millisecond)
	defer s.end()
	<-s.ctx.Done()
	if cause := context.Cause(s.ctx); !fault.Is(cause, fault.Unavailable) {
		t.Errorf("hanging: %v", cause)
	}
	slow := newStall(ctx, time.Hour)
	defer slow.end()
	slow.since = slow.since.Add(-time.Minute)
	slow.moved(disk.Progress{Step: "disk 0", Done: 0, Total: 9})
	if slow.still() < time.Minute {
		t.Error("no progress was taken for some")
	}
	slow.moved(disk.Progress{Step: "disk 0", Done: 5, Total: 9})
	if slow.still() >= time.Minute {
		t.Error("progress was not seen")
	}
	slow.since = slow.since.Add(-time.Minute)
	slow.moved(disk.Progress{Step: "disk 0", Done: 5, Total: 9})
	if slow.still() < time.Minute {
		t.Error("the same again was taken for progress")
	}
}

// A guest that powers itself off is drained as soon as the server wants it off.
func TestGuestThatPowersItselfOffIsDrained(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	b.w.end(1, hypervisor.Off, "guest")
	b.until(1, 1, wire.Phase_PHASE_OFF)
	b.order(assignment(1, 2, goalOff))
	b.until(1, 2, wire.Phase_PHASE_OFF)
	if got := b.w.happened(1); got != "prepare start drain" {
		t.Errorf("done: %s", got)
	}
}
