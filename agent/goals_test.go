package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
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
						b.idleOr(20 * time.Millisecond)
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

func (b *bench) idleOr(d time.Duration) { time.Sleep(d) }

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

func TestSaveDisks(t *testing.T) {
	saves := func(operations ...uint64) func(*wire.Assignment) {
		return func(a *wire.Assignment) {
			for _, operation := range operations {
				a.Saves = append(a.Saves, &wire.SaveDisk{Operation: operation, Disk: int32(operation - 1), Name: "copy"})
			}
		}
	}
	b := newBench(t)
	b.begin()
	b.order(assignment(1, 1, goalRunning, saves(1, 2)))
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	b.idle()
	results := b.report(1).Saves
	if len(results) != 2 || results[0].Digest != "blake3:copy" || results[1].ErrorClass != "not-found" {
		t.Errorf("results %v", results)
	}
	b.stop()
	b.begin()
	b.order(assignment(1, 1, goalRunning, saves(1, 2)))
	b.idle()
	if got := b.w.happened(1); got != "prepare start saveas-copy" {
		t.Errorf("done: %s", got)
	}
	b.order(assignment(1, 1, goalRunning))
	b.idle()
	if results := b.report(1).Saves; len(results) != 0 {
		t.Errorf("results that nobody asks for any more: %v", results)
	}
	b.stop()

	b = newBench(t)
	b.plain = true
	b.begin()
	b.order(assignment(1, 1, goalRunning, saves(1)))
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	b.idle()
	if results := b.report(1).Saves; len(results) != 1 || results[0].ErrorClass != "unsupported" {
		t.Errorf("results %v", results)
	}
}

func TestSaveBeforeGone(t *testing.T) {
	last := func(disk int32) func(*wire.Assignment) {
		return func(a *wire.Assignment) {
			a.Saves = []*wire.SaveDisk{{Operation: 7, Disk: disk, Name: "result", BeforeGone: true}}
		}
	}
	b := newBench(t)
	b.begin()
	b.order(assignment(1, 1, goalRunning, last(0)))
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	b.idle()
	if got := b.w.happened(1); got != "prepare start" || len(b.report(1).Saves) != 0 {
		t.Errorf("while it runs: %s, %v", got, b.report(1).Saves)
	}
	b.order(assignment(1, 2, goalGone, last(5))) // which it has not
	b.until(1, 2, wire.Phase_PHASE_FAILED)
	b.idle()
	if r := b.report(1); r.FailedStep != wire.Step_STEP_REMOVE || !strings.Contains(r.Error, "no disk 5") || len(r.Saves) != 0 {
		t.Errorf("a save that fails: %v", r)
	}
	if got := b.w.happened(1); strings.Contains(got, "remove") {
		t.Errorf("its disks went unsaved: %s", got)
	}
	b.order(assignment(1, 3, goalGone, last(0)))
	b.until(1, 3, wire.Phase_PHASE_GONE)
	b.idle()
	if got := b.w.happened(1); !strings.Contains(got, "saveas-result") || strings.Index(got, "saveas-result") > strings.Index(got, "remove") {
		t.Errorf("done: %s", got)
	}
	if results := b.report(1).Saves; len(results) != 1 || results[0].Digest != "blake3:result" {
		t.Errorf("results %v", results)
	}
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
