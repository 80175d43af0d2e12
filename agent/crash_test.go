package agent

import (
	"sync/atomic"
	"testing"

	"hayloft/wire"
)

const (
	goalRunning   = wire.Goal_GOAL_RUNNING
	goalOff       = wire.Goal_GOAL_OFF
	goalSuspended = wire.Goal_GOAL_SUSPENDED
	goalStashed   = wire.Goal_GOAL_STASHED
	goalGone      = wire.Goal_GOAL_GONE
)

// life of a machine through every goal.
var wholeLife = []struct {
	phase wire.Phase
	want  *wire.Assignment
}{
	{wire.Phase_PHASE_RUNNING, assignment(3, 1, goalRunning)},
	{wire.Phase_PHASE_SUSPENDED, assignment(3, 2, goalSuspended)},
	{wire.Phase_PHASE_RUNNING, assignment(3, 3, goalRunning, func(a *wire.Assignment) { a.Restore = true })},
	{wire.Phase_PHASE_RUNNING, assignment(3, 4, goalRunning, func(a *wire.Assignment) { a.Reboot = 1 })},
	{wire.Phase_PHASE_STASHED, assignment(3, 5, goalStashed, func(a *wire.Assignment) { a.WithMemory, a.Reboot = true, 1 })},
	{wire.Phase_PHASE_RUNNING, assignment(3, 6, goalRunning, func(a *wire.Assignment) { a.Restore, a.Unstash, a.Reboot = true, true, 1 })},
	{wire.Phase_PHASE_OFF, assignment(3, 7, goalOff, func(a *wire.Assignment) {
		a.Reboot = 1
		a.Saves = []*wire.SaveDisk{{Operation: 9, Disk: 0, Name: "copy"}}
	})},
	{wire.Phase_PHASE_RUNNING, assignment(3, 8, goalRunning, func(a *wire.Assignment) { a.Reboot = 1 })},
	{wire.Phase_PHASE_STASHED, assignment(3, 9, goalStashed, func(a *wire.Assignment) { a.Reboot = 1 })},
	{wire.Phase_PHASE_RUNNING, assignment(3, 10, goalRunning, func(a *wire.Assignment) { a.Unstash, a.Reboot = true, 2 })},
	{wire.Phase_PHASE_GONE, assignment(3, 11, goalGone, hard)},
}

// wholeHistory: what a machine wrote is drained whenever it is off or goes, and not when it is only suspended.
const wholeHistory = "prepare start save restore reboot(hard=false) save drain stash(disks,machine.json,memory) unstash restore dropstash " +
	"shutdown drain saveas-copy start shutdown drain stash(disks,machine.json) unstash start dropstash kill drain remove"

// liveThrough takes a machine through its life; an agent that dies is followed by another one, which
// carries on from its records alone.
func liveThrough(t *testing.T, b *bench) {
	b.begin()
	for _, stage := range wholeLife {
		stage.want.Machine.Context, stage.want.Machine.ContextImages = nil, nil // costs time and has no step of its own
		b.order(stage.want)
		b.until(3, stage.want.Epoch, stage.phase)
		if b.agent.ctx.Err() == nil {
			b.idle()
		}
		if b.agent.ctx.Err() != nil {
			b.agent.wg.Wait()
			b.hook = nil
			b.begin()
			b.until(3, stage.want.Epoch, stage.phase)
			b.idle()
		}
		if stage.want.Goal == goalOff {
			if saves := b.report(3).Saves; len(saves) != 1 || saves[0].Digest != "blake3:copy" {
				t.Fatalf("saves: %v", saves)
			}
		}
	}
	b.order()
	b.idle()
	b.stop()
	if err := b.w.nothingLeft(); err != nil {
		t.Error(err)
	}
}

func TestLifeOfAMachine(t *testing.T) {
	b := newBench(t)
	points := 0
	b.hook = func(int64, string) { points++ }
	liveThrough(t, b)
	if got := b.w.happened(3); got != wholeHistory {
		t.Errorf("done:\n%s\nwant:\n%s", got, wholeHistory)
	}
	if points < 100 {
		t.Errorf("only %d points to crash at", points)
	}
}

// TestKillAtEveryPoint kills the agent before and after every step of a machine's life; the next agent
// finishes it, and nothing is lost or done twice.
func TestKillAtEveryPoint(t *testing.T) {
	for n, more := 1, true; more; n++ {
		b := newBench(t)
		var count atomic.Int64
		where := ""
		b.hook = func(_ int64, point string) {
			if count.Add(1) == int64(n) {
				where = point
				b.kill()
			}
		}
		liveThrough(t, b)
		more = where != ""
		if got := b.w.happened(3); got != wholeHistory {
			t.Errorf("killed at point %d, %s:\n%s\nwant:\n%s", n, where, got, wholeHistory)
		}
		if t.Failed() {
			return
		}
	}
}
