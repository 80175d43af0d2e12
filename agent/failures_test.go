package agent

import (
	"context"
	"errors"
	"os"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/hypervisor"
	"hayloft/wire"
)

func TestFailureLeavesNothing(t *testing.T) {
	b := newBench(t)
	b.begin()
	b.w.prepare = func(context.Context, disk.Request) error { return fault.Errorf(fault.OutOfSpace, "disk 0: full") }
	b.order(assignment(1, 1, goalRunning))
	report := b.until(1, 1, wire.Phase_PHASE_FAILED)
	if report.FailedStep != wire.Step_STEP_PREPARE || report.ErrorClass != "out-of-space" {
		t.Errorf("report %v", report)
	}
	contains(t, report.Error, "disk 0: full")
	if _, err := os.Stat(b.agent.cfg.machineDir(1)); err == nil {
		t.Error("a directory is left")
	}

	b.w.prepare = nil
	b.w.start = func(context.Context, hypervisor.Machine) error {
		return errors.New("qemu: -device nonsense: not a device")
	}
	b.order(assignment(1, 2, goalRunning))
	report = b.until(1, 2, wire.Phase_PHASE_FAILED)
	if report.FailedStep != wire.Step_STEP_BOOT {
		t.Errorf("report %v", report)
	}
	contains(t, report.Error, "not a device")
	b.idle()
	if len(b.w.ports) != 0 || len(b.w.disks) != 1 {
		t.Errorf("ports %v, disks %v", b.w.ports, b.w.disks)
	}

	b.stop()
	b.w.start = nil
	b.begin() // a failure is remembered, not tried again
	b.idle()
	if report := b.report(1); report.Phase != wire.Phase_PHASE_FAILED || b.w.happened(1) != "prepare" {
		t.Errorf("report %v after %s", report, b.w.happened(1))
	}
	b.order(assignment(1, 3, goalRunning))
	b.until(1, 3, wire.Phase_PHASE_RUNNING)
}

// TestPrepareFailureKeepsWrites: a machine that had disks keeps them when the repository is away.
func TestPrepareFailureKeepsWrites(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["off"](b)
	b.w.prepare = func(context.Context, disk.Request) error {
		return fault.Errorf(fault.Unavailable, "repository away")
	}
	b.order(assignment(1, 2, goalRunning))
	b.until(1, 2, wire.Phase_PHASE_FAILED)
	b.w.prepare = nil
	b.order(assignment(1, 3, goalRunning))
	b.until(1, 3, wire.Phase_PHASE_RUNNING)
	if got := b.w.happened(1); got != "prepare start" && got != "prepare start start" {
		t.Errorf("done: %s", got)
	}
	if b.w.disks[1] != "new+start+start" {
		t.Errorf("disks: %s", b.w.disks[1])
	}
}

func TestEndedMachineStaysEnded(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["crashed"](b)
	contains(t, b.report(1).Reason, "segmentation fault")
	b.idle()
	if len(b.w.ports) != 0 {
		t.Errorf("ports of a dead machine: %v", b.w.ports)
	}
	b.stop()
	b.begin()
	b.idle()
	if got := b.report(1); got.Phase != wire.Phase_PHASE_CRASHED || b.w.happened(1) != "prepare start" {
		t.Errorf("%v after %s", got, b.w.happened(1))
	}
	b.order(assignment(1, 2, goalRunning))
	b.until(1, 2, wire.Phase_PHASE_RUNNING)
}

func TestDeafGuest(t *testing.T) {
	b := newBench(t)
	b.begin()
	b.w.deaf = true
	origins["running"](b)
	b.order(assignment(1, 2, goalOff, func(a *wire.Assignment) { a.ShutdownSeconds = 1 }))
	report := b.until(1, 2, wire.Phase_PHASE_FAILED)
	if report.FailedStep != wire.Step_STEP_SHUTDOWN || !alive(*b.w.domains[1]) {
		t.Errorf("%v, domain %v", report, b.w.domains[1])
	}
	contains(t, report.Error, "did not power off within 1s")
	b.w.end(1, hypervisor.Off, "at last")
	b.until(1, 2, wire.Phase_PHASE_OFF)
}

func TestHardCutsAShutdownUnderWay(t *testing.T) {
	b := newBench(t)
	b.begin()
	b.w.deaf = true
	origins["running"](b)
	b.order(assignment(1, 2, goalOff))
	b.until(1, 2, wire.Phase_PHASE_STOPPING)
	b.order(assignment(1, 3, goalOff, hard))
	b.until(1, 3, wire.Phase_PHASE_OFF)
	if got := b.w.happened(1); got != "prepare start kill drain" {
		t.Errorf("done: %s", got)
	}
}

func TestSaveThatFails(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	b.w.save = func() error { return fault.Errorf(fault.Unsupported, "cannot be saved") }
	b.order(assignment(1, 2, goalSuspended))
	report := b.until(1, 2, wire.Phase_PHASE_FAILED)
	if report.FailedStep != wire.Step_STEP_SAVE || report.ErrorClass != "unsupported" || !alive(*b.w.domains[1]) {
		t.Errorf("%v", report)
	}
	b.order(assignment(1, 3, goalRunning))
	b.until(1, 3, wire.Phase_PHASE_RUNNING)
}

func TestWrongAssignments(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*wire.Assignment)
		class  string
		words  string
	}{
		"hypervisor": {func(a *wire.Assignment) { a.Machine.Hypervisor = "xen" }, "unsupported", `no hypervisor "xen"`},
		"address":    {func(a *wire.Assignment) { a.Machine.Nics[0].Ips = []string{"nine"} }, "invalid", "NIC 0"},
		"network":    {func(a *wire.Assignment) { a.Machine.Nics[0].Network = nil }, "invalid", "NIC 0 has no network"},
		"no machine": {func(a *wire.Assignment) { a.Machine = nil }, "invalid", "what to run"},
		"no stash":   {func(a *wire.Assignment) { a.Unstash, a.System = true, nil }, "invalid", "stash"},
		"goal":       {func(a *wire.Assignment) { a.Goal = 77 }, "invalid", "goal 77"},
		"context":    {func(a *wire.Assignment) { a.Machine.Context["../x"] = nil }, "invalid", `"../x"`},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.begin()
			b.order(assignment(1, 1, goalRunning, row.change))
			report := b.until(1, 1, wire.Phase_PHASE_FAILED)
			contains(t, report.Error, row.words)
			if report.ErrorClass != row.class {
				t.Errorf("class %s, want %s", report.ErrorClass, row.class)
			}
			b.idle()
			if err := b.w.nothingLeft(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNetworkTakenAway: a bridge that somebody removed is made again for the next machine.
func TestNetworkTakenAway(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	b.w.mu.Lock()
	clear(b.w.bridges)
	b.w.mu.Unlock()
	b.order(assignment(1, 1, goalRunning), assignment(2, 1, goalRunning))
	b.until(2, 1, wire.Phase_PHASE_RUNNING)
	b.order(assignment(1, 1, goalRunning), assignment(2, 1, goalRunning), assignment(3, 1, goalRunning))
	b.until(3, 1, wire.Phase_PHASE_RUNNING)
	if b.w.ensures != 2 {
		t.Errorf("ensured %d times", b.w.ensures)
	}
}

func TestPlugFails(t *testing.T) {
	b := newBench(t)
	b.begin()
	b.w.plug = func() error { return fault.Errorf(fault.Busy, "one-1-0: taken by something else") }
	b.order(assignment(1, 1, goalRunning))
	report := b.until(1, 1, wire.Phase_PHASE_FAILED)
	contains(t, report.Error, "one-1-0: taken")
	if report.FailedStep != wire.Step_STEP_BOOT || report.ErrorClass != "busy" || len(b.w.ports) != 0 {
		t.Errorf("%v, ports %v", report, b.w.ports)
	}
}
