package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/disk"
	"hayloft/hypervisor"
	"hayloft/wire"
)

// phases a machine can be brought into, and how.
var origins = map[string]func(b *bench){
	"nothing": func(b *bench) { b.order() },
	"preparing": func(b *bench) {
		b.w.prepare = func(ctx context.Context, _ disk.Request) error {
			<-ctx.Done()
			return ctx.Err()
		}
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_PREPARING)
	},
	"booting": func(b *bench) {
		b.w.start = func(ctx context.Context, _ hypervisor.Machine) error {
			<-ctx.Done()
			return ctx.Err()
		}
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_BOOTING)
	},
	"running": func(b *bench) {
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_RUNNING)
	},
	"off": func(b *bench) {
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_RUNNING)
		b.w.end(1, hypervisor.Off, "powered off inside")
		b.until(1, 1, wire.Phase_PHASE_OFF)
	},
	"crashed": func(b *bench) {
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_RUNNING)
		b.w.end(1, hypervisor.Crashed, "segmentation fault")
		b.until(1, 1, wire.Phase_PHASE_CRASHED)
	},
	"suspended": func(b *bench) {
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_RUNNING)
		b.order(assignment(1, 2, goalSuspended))
		b.until(1, 2, wire.Phase_PHASE_SUSPENDED)
	},
	"stashed": func(b *bench) {
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_RUNNING)
		b.order(assignment(1, 2, goalStashed, func(a *wire.Assignment) { a.WithMemory = true }))
		b.until(1, 2, wire.Phase_PHASE_STASHED)
	},
	"failed to prepare": func(b *bench) {
		b.w.prepare = func(context.Context, disk.Request) error { return errors.New("no image") }
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_FAILED)
	},
	"failed to boot": func(b *bench) {
		b.w.start = func(context.Context, hypervisor.Machine) error { return errors.New("bad option") }
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_FAILED)
	},
	"gone": func(b *bench) {
		b.order(assignment(1, 1, goalRunning))
		b.until(1, 1, wire.Phase_PHASE_RUNNING)
		b.order(assignment(1, 2, goalGone))
		b.until(1, 2, wire.Phase_PHASE_GONE)
	},
}

// TestEveryGoalFromEveryPhase goes from each phase to each goal, then away, and finds nothing left.
func TestEveryGoalFromEveryPhase(t *testing.T) {
	goals := map[wire.Goal][]wire.Phase{
		goalRunning:   {wire.Phase_PHASE_RUNNING},
		goalOff:       {wire.Phase_PHASE_OFF},
		goalSuspended: {wire.Phase_PHASE_SUSPENDED, wire.Phase_PHASE_OFF, wire.Phase_PHASE_CRASHED},
		goalGone:      {wire.Phase_PHASE_GONE},
		goalStashed:   {wire.Phase_PHASE_STASHED, wire.Phase_PHASE_FAILED}, // there may be nothing to stash
	}
	for origin, bring := range origins {
		for goal, phases := range goals {
			t.Run(origin+" to "+goal.String(), func(t *testing.T) {
				b := newBench(t)
				b.begin()
				bring(b)
				if origin != "preparing" && origin != "booting" {
					b.idle()
				}
				b.order(assignment(1, 5, goal, func(a *wire.Assignment) {
					a.Hard = goal != goalRunning
					a.Unstash = origin == "stashed" && (goal == goalRunning || goal == goalGone)
				}))
				if origin == "preparing" || origin == "booting" {
					if goal == goalRunning { // the same machine is still wanted: what is under way goes on
						b.order(assignment(1, 6, goalGone, hard))
						b.until(1, 6, wire.Phase_PHASE_GONE)
						return
					}
				}
				if origin == "failed to prepare" || origin == "failed to boot" {
					if goal == goalRunning {
						phases = []wire.Phase{wire.Phase_PHASE_FAILED}
					}
				}
				b.until(1, 5, phases...)
				b.idle()
				b.order(assignment(1, 6, goalGone, hard, func(a *wire.Assignment) { a.Unstash = true }))
				b.until(1, 6, wire.Phase_PHASE_GONE)
				b.idle()
				if err := b.w.nothingLeft(); err != nil {
					t.Error(err)
				}
				if len(b.w.stashes) > 0 {
					t.Errorf("stash left: %v", b.w.stashes)
				}
				if _, err := os.Stat(b.agent.cfg.machineDir(1)); err == nil {
					t.Error("the machine's directory is left")
				}
				b.order()
				b.idle()
				if b.report(1) != nil {
					t.Error("the machine is not forgotten")
				}
			})
		}
	}
}

func TestStartedAsDescribed(t *testing.T) {
	b := newBench(t)
	b.begin()
	b.order(assignment(4, 1, goalRunning, func(a *wire.Assignment) {
		a.Machine.Disks[0].Target, a.Machine.ContextTarget = "vda", "hdb"
		a.Machine.Graphics = &wire.Graphics{Type: "vnc", Port: 5904}
	}))
	report := b.until(4, 1, wire.Phase_PHASE_RUNNING)
	m := b.w.started[0]
	dir := b.agent.cfg.machineDir(4)
	if m.UID != DefaultUIDBase+4 || m.GID != DefaultGID || m.Dir != dir {
		t.Errorf("user %d:%d, directory %s", m.UID, m.GID, m.Dir)
	}
	if want := filepath.Join(dir, "disks", "file0"); m.Boot.Kernel != want {
		t.Errorf("kernel %s, want %s", m.Boot.Kernel, want)
	}
	if len(m.Disks) != 2 || m.Disks[1].Target != "hdb" || !m.Disks[1].CDROM || !m.Disks[1].Device.ReadOnly || m.Disks[1].ID != 1 {
		t.Errorf("disks %+v", m.Disks)
	}
	content, err := os.ReadFile(m.Disks[1].Device.Path)
	if err != nil || !bytes.Contains(content, []byte("ETH0_IP=10.0.0.5")) || !bytes.Contains(content, []byte("extra-image")) {
		t.Errorf("context disk of %d bytes, %v", len(content), err)
	}
	nic := m.NICs[0]
	if nic.IP != "10.0.0.5/24" || nic.Bridge != "br7" || nic.Port != "one-4-0" {
		t.Errorf("NIC %+v", nic)
	}
	if _, err := nic.Tap.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the tap was not closed: %v", err)
	}
	if report.RepositoryBytes != 100 || report.GivenBytes != 1000 {
		t.Errorf("bytes: %v", report)
	}
	at := report.Timing
	moments := []int64{at.Received, at.PrepareStart, at.PrepareEnd, at.BootStart, at.BootEnd}
	if !slices.IsSorted(moments) || moments[0] == 0 || at.End == 0 {
		t.Errorf("timing %v", at)
	}
}

func TestRebootOnceEach(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	for serial := range uint64(3) {
		b.order(assignment(1, 1, goalRunning, func(a *wire.Assignment) { a.Reboot, a.RebootHard = serial, serial == 2 }))
		b.idle()
	}
	if got := b.w.happened(1); got != "prepare start reboot(hard=false) reboot(hard=true)" || b.report(1).Reboot != 2 {
		t.Errorf("done: %s; %v", got, b.report(1))
	}
}

func TestBoundedStarts(t *testing.T) {
	b := newBench(t)
	b.begin()
	var now, most atomic.Int64
	b.w.start = func(context.Context, hypervisor.Machine) error {
		most.Store(max(most.Load(), now.Add(1)))
		time.Sleep(time.Millisecond)
		now.Add(-1)
		return nil
	}
	var all []*wire.Assignment
	for vm := range int64(30) {
		all = append(all, assignment(vm, 1, goalRunning))
	}
	b.order(all...)
	for vm := range int64(30) {
		b.until(vm, 1, wire.Phase_PHASE_RUNNING)
	}
	if most.Load() > int64(b.cfg.Starts) {
		t.Errorf("%d starts at a time", most.Load())
	}
	b.idle()
	for vm := range int64(30) {
		all[vm] = assignment(vm, 2, goalGone, hard)
	}
	b.order(all...)
	for vm := range int64(30) {
		b.until(vm, 2, wire.Phase_PHASE_GONE)
	}
	b.idle()
	if err := b.w.nothingLeft(); err != nil {
		t.Error(err)
	}
}

func TestUsageIsSampled(t *testing.T) {
	b := newBench(t)
	b.pace.usage = time.Millisecond
	b.begin()
	origins["running"](b)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if report := b.report(1); report.CpuSeconds == 1.5 && report.MemoryBytes == 1<<20 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("no usage in the report")
}

func TestDisksGrow(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["off"](b)
	for _, epoch := range []uint64{2, 4} {
		b.order(assignment(1, epoch, goalRunning, func(a *wire.Assignment) { a.Machine.Disks[0].Size = 4096 }))
		b.until(1, epoch, wire.Phase_PHASE_RUNNING)
		b.order(assignment(1, epoch+1, goalOff))
		b.until(1, epoch+1, wire.Phase_PHASE_OFF)
	}
	if got := b.w.happened(1); got != "prepare start resize-0-4096 start shutdown drain start shutdown drain" {
		t.Errorf("done: %s", got)
	}
}

// TestNothingWanted: work is given up when the server wants nothing, and what is there stays.
func TestNothingWanted(t *testing.T) {
	for origin, phase := range map[string]wire.Phase{
		"preparing": wire.Phase_PHASE_UNSPECIFIED, "running": wire.Phase_PHASE_RUNNING, "crashed": wire.Phase_PHASE_CRASHED,
		"suspended": wire.Phase_PHASE_SUSPENDED, "nothing": wire.Phase_PHASE_UNSPECIFIED, "failed to boot": wire.Phase_PHASE_OFF,
	} {
		t.Run(origin, func(t *testing.T) {
			b := newBench(t)
			b.begin()
			origins[origin](b)
			before := b.w.happened(1)
			b.order(assignment(1, 5, wire.Goal_GOAL_UNSPECIFIED))
			b.until(1, 5, phase)
			if got := b.w.happened(1); got != before {
				t.Errorf("done: %s, before: %s", got, before)
			}
			b.order(assignment(1, 6, goalGone, hard))
			b.until(1, 6, wire.Phase_PHASE_GONE)
			b.idle()
			if err := b.w.nothingLeft(); err != nil {
				t.Error(err)
			}
		})
	}
}
