package lifecycle

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"hayloft/cloud"
	"hayloft/wire"
)

var at = time.Unix(1_700_000_000, 0)

func newVM() cloud.VM {
	return cloud.VM{ID: 1, Name: "m", HostID: -1, Timing: cloud.Timing{Submitted: at.UnixNano()}}
}

func must(t testing.TB, vm *cloud.VM, e cloud.Event) {
	t.Helper()
	if err := Apply(vm, e, at); err != nil {
		t.Fatalf("%v in %v: %v", e, vm.Phase(), err)
	}
}

func placed(t testing.TB) cloud.VM {
	t.Helper()
	vm := newVM()
	must(t, &vm, cloud.EventCreated)
	if err := Place(&vm, cloud.Host{ID: 7, Name: "h"}, at); err != nil {
		t.Fatal(err)
	}
	return vm
}

func report(vm *cloud.VM, phase wire.Phase) *wire.MachineReport {
	return &wire.MachineReport{Vm: int64(vm.ID), Epoch: vm.Orders.Epoch, Phase: phase}
}

func running(t testing.TB) cloud.VM {
	t.Helper()
	vm := placed(t)
	if !ApplyReport(&vm, report(&vm, wire.Phase_PHASE_RUNNING), at) || vm.Phase() != cloud.Active(cloud.LCMRunning) {
		t.Fatalf("a placed machine that is reported running is %v", vm.Phase())
	}
	return vm
}

func TestDeploymentNeedsOneSetOfOrders(t *testing.T) {
	vm := placed(t)
	epoch := vm.Orders.Epoch
	for _, step := range []struct {
		phase wire.Phase
		want  cloud.LCMState
	}{{wire.Phase_PHASE_PREPARING, cloud.LCMProlog}, {wire.Phase_PHASE_BOOTING, cloud.LCMBoot}, {wire.Phase_PHASE_RUNNING, cloud.LCMRunning}} {
		ApplyReport(&vm, report(&vm, step.phase), at)
		if vm.LCM != step.want || vm.Orders.Epoch != epoch || vm.Orders.Goal != GoalRunning {
			t.Fatalf("after %v: %v, epoch %d -> %d, goal %q", step.phase, vm.Phase(), epoch, vm.Orders.Epoch, vm.Orders.Goal)
		}
	}
}

func TestOldReportsChangeNothing(t *testing.T) {
	vm := running(t)
	old := report(&vm, wire.Phase_PHASE_RUNNING)
	must(t, &vm, cloud.EventPoweroff)
	if ApplyReport(&vm, old, at) || vm.LCM != cloud.LCMShutdownPoweroff {
		t.Fatalf("a report about former orders was believed: %v", vm.Phase())
	}
}

// Each way down and back, as what the user asks, what the host says, and where that ends.
func TestJourneys(t *testing.T) {
	type step struct {
		event cloud.Event
		says  wire.Phase
		want  cloud.Phase
		goal  string
	}
	done := cloud.At(cloud.StateDone)
	on := cloud.Active(cloud.LCMRunning)
	for name, steps := range map[string][]step{
		"poweroff":  {{cloud.EventPoweroff, wire.Phase_PHASE_OFF, cloud.At(cloud.StatePoweroff), GoalOff}, {cloud.EventResume, wire.Phase_PHASE_RUNNING, on, GoalRunning}},
		"suspend":   {{cloud.EventSuspend, wire.Phase_PHASE_SUSPENDED, cloud.At(cloud.StateSuspended), GoalSuspended}, {cloud.EventResume, wire.Phase_PHASE_RUNNING, on, GoalRunning}},
		"stop":      {{cloud.EventStop, wire.Phase_PHASE_STASHED, cloud.At(cloud.StateStopped), GoalNone}},
		"undeploy":  {{cloud.EventUndeploy, wire.Phase_PHASE_STASHED, cloud.At(cloud.StateUndeployed), GoalNone}},
		"terminate": {{cloud.EventTerminate, wire.Phase_PHASE_GONE, done, GoalNone}},
		"delete":    {{cloud.EventRecoverDelete, wire.Phase_PHASE_GONE, done, GoalNone}},
		"off, then terminate": {{cloud.EventPoweroff, wire.Phase_PHASE_OFF, cloud.At(cloud.StatePoweroff), GoalOff},
			{cloud.EventTerminate, wire.Phase_PHASE_GONE, done, GoalNone}},
		"off, then delete": {{cloud.EventPoweroff, wire.Phase_PHASE_OFF, cloud.At(cloud.StatePoweroff), GoalOff},
			{cloud.EventRecoverDelete, wire.Phase_PHASE_GONE, done, GoalGone}},
	} {
		t.Run(name, func(t *testing.T) {
			vm := running(t)
			for _, s := range steps {
				before := vm.Orders.Epoch
				must(t, &vm, s.event)
				if vm.Orders.Epoch == before {
					t.Fatalf("%s gave the host no new orders", s.event)
				}
				ApplyReport(&vm, report(&vm, s.says), at)
				if vm.Phase() != s.want {
					t.Fatalf("after %s and %v: %v, want %v", s.event, s.says, vm.Phase(), s.want)
				}
				if vm.State != cloud.StateDone && vm.Orders.Goal != s.goal {
					t.Fatalf("after %s: goal %q, want %q", s.event, vm.Orders.Goal, s.goal)
				}
			}
			if vm.State == cloud.StateDone && vm.HostID != -1 {
				t.Fatal("a machine that is done and gone still has a host")
			}
		})
	}
}

func TestStoppedMachineComesBackWithItsMemory(t *testing.T) {
	vm := running(t)
	must(t, &vm, cloud.EventStop)
	ApplyReport(&vm, report(&vm, wire.Phase_PHASE_STASHED), at)
	if !vm.Stashed || !vm.StashedMemory || vm.HostID != -1 {
		t.Fatalf("stopped: stashed %v memory %v host %d", vm.Stashed, vm.StashedMemory, vm.HostID)
	}
	must(t, &vm, cloud.EventResume)
	if err := Place(&vm, cloud.Host{ID: 8, Name: "other"}, at); err != nil {
		t.Fatal(err)
	}
	if vm.LCM != cloud.LCMPrologResume || !vm.Orders.Unstash || !vm.Orders.Restore {
		t.Fatalf("deployed again: %v, orders %+v", vm.Phase(), vm.Orders)
	}
	epoch := vm.Orders.Epoch
	ApplyReport(&vm, report(&vm, wire.Phase_PHASE_BOOTING), at)
	ApplyReport(&vm, report(&vm, wire.Phase_PHASE_RUNNING), at)
	if vm.Phase() != cloud.Active(cloud.LCMRunning) || vm.Stashed || vm.Orders.Epoch != epoch {
		t.Fatalf("running again: %v, stashed %v, epoch %d -> %d", vm.Phase(), vm.Stashed, epoch, vm.Orders.Epoch)
	}
}

func TestRefusedShutdownGoesOnRunning(t *testing.T) {
	vm := running(t)
	must(t, &vm, cloud.EventTerminate)
	r := report(&vm, wire.Phase_PHASE_FAILED)
	r.FailedStep, r.Error = wire.Step_STEP_SHUTDOWN, "the guest did not power off"
	ApplyReport(&vm, r, at)
	if vm.Phase() != cloud.Active(cloud.LCMRunning) || vm.Orders.Goal != GoalRunning || vm.Error != r.Error {
		t.Fatalf("%v, goal %q, error %q", vm.Phase(), vm.Orders.Goal, vm.Error)
	}
}

func TestCrash(t *testing.T) {
	vm := running(t)
	r := report(&vm, wire.Phase_PHASE_CRASHED)
	r.Reason = "killed by signal 9"
	ApplyReport(&vm, r, at)
	if vm.Phase() != cloud.Active(cloud.LCMUnknown) || vm.Error == "" {
		t.Fatalf("%v, error %q", vm.Phase(), vm.Error)
	}
	booting := placed(t)
	ApplyReport(&booting, report(&booting, wire.Phase_PHASE_BOOTING), at)
	ApplyReport(&booting, report(&booting, wire.Phase_PHASE_CRASHED), at)
	if booting.Phase() != cloud.Active(cloud.LCMBootFailure) {
		t.Fatalf("crash while booting: %v", booting.Phase())
	}
}

// Whatever happens: a machine with a host has orders or waits for a decision, one without has none, and
// epochs only grow.
func TestOrdersStayConsistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vm := newVM()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			epoch := vm.Orders.Epoch
			if rapid.Bool().Draw(t, "host speaks") && vm.HostID >= 0 {
				phases := []wire.Phase{wire.Phase_PHASE_BOOTING, wire.Phase_PHASE_RUNNING, wire.Phase_PHASE_OFF, wire.Phase_PHASE_SUSPENDED,
					wire.Phase_PHASE_STASHED, wire.Phase_PHASE_GONE, wire.Phase_PHASE_CRASHED, wire.Phase_PHASE_FAILED}
				r := report(&vm, rapid.SampledFrom(phases).Draw(t, "phase"))
				r.FailedStep = wire.Step(rapid.IntRange(1, 6).Draw(t, "failed step"))
				ApplyReport(&vm, r, at)
			} else if vm.State == cloud.StatePending && rapid.Bool().Draw(t, "place") {
				_ = Place(&vm, cloud.Host{ID: 3, Name: "h"}, at)
			} else if events := cloud.Events(vm.Phase()); len(events) > 0 {
				e := rapid.SampledFrom(events).Draw(t, "event")
				if e == cloud.EventSaveas && vm.HostID < 0 {
					continue // operation refuses it
				}
				if e == cloud.EventDeploy || e == cloud.EventDeployStopped || e == cloud.EventDeployUndeployed {
					continue // only Place deploys
				}
				if err := Apply(&vm, e, at); err != nil {
					t.Fatalf("%v in %v: %v", e, vm.Phase(), err)
				}
				if vm.LCM == cloud.LCMEpilog && vm.HostID < 0 { // as operation does, which knows the hosts
					vm.HostID, vm.Orders.Goal = 0, GoalGone
				}
			}
			if vm.Orders.Epoch < epoch {
				t.Fatalf("epoch went from %d to %d", epoch, vm.Orders.Epoch)
			}
			homeless := vm.State == cloud.StatePending || vm.State == cloud.StateHold || vm.State == cloud.StateStopped || vm.State == cloud.StateUndeployed
			if homeless && vm.HostID >= 0 {
				t.Fatalf("%v on host %d", vm.Phase(), vm.HostID)
			}
			if vm.State == cloud.StateDone && vm.HostID >= 0 && vm.Orders.Goal != GoalGone {
				t.Fatalf("DONE on host %d with goal %q", vm.HostID, vm.Orders.Goal)
			}
			if vm.State == cloud.StateActive && !vm.LCM.Failure() && vm.HostID < 0 {
				t.Fatalf("%v without a host", vm.Phase())
			}
		}
	})
}

func TestMachineThatDiesWhileItsDiskIsSaved(t *testing.T) {
	vm := running(t)
	must(t, &vm, cloud.EventSaveas)
	vm.Orders.Saves = []cloud.SaveDisk{{Operation: 4, ImageID: 3}}
	r := report(&vm, wire.Phase_PHASE_CRASHED)
	if ApplyReport(&vm, r, at) {
		t.Fatalf("in the midst of saving: %v", vm.Phase())
	}
	r.Saves = []*wire.SaveResult{{Operation: 4, Error: "it died"}, {Operation: 2}}
	if done := SavesDone(&vm, r, at); len(done) != 1 || done[r.Saves[0]].ImageID != 3 || len(vm.Orders.Saves) != 0 {
		t.Fatalf("%v, left %v", done, vm.Orders.Saves)
	}
	ApplyReport(&vm, r, at)
	if vm.Phase() != cloud.Active(cloud.LCMUnknown) {
		t.Fatalf("when saving is over: %v", vm.Phase())
	}
}

func TestMachineThatIsNotStartedAgainAfterAFailedSave(t *testing.T) {
	for _, step := range []wire.Step{wire.Step_STEP_PREPARE, wire.Step_STEP_BOOT} {
		vm := running(t)
		must(t, &vm, cloud.EventSuspend)
		r := report(&vm, wire.Phase_PHASE_FAILED)
		r.FailedStep, r.Error = wire.Step_STEP_SAVE, "it died"
		ApplyReport(&vm, r, at)
		if vm.Phase() != cloud.Active(cloud.LCMRunning) || vm.Orders.Goal != GoalRunning {
			t.Fatalf("after the save: %v, %+v", vm.Phase(), vm.Orders)
		}
		r = report(&vm, wire.Phase_PHASE_FAILED)
		r.FailedStep, r.Error = step, "no start"
		ApplyReport(&vm, r, at)
		if vm.Phase() != cloud.Active(cloud.LCMUnknown) || vm.Error != "no start" {
			t.Errorf("%v: %v, %q", step, vm.Phase(), vm.Error)
		}
	}
}

// A machine that ends instead of being saved is not started again by anybody but its user.
func TestMachineThatEndsInsteadOfBeingSaved(t *testing.T) {
	for _, action := range []cloud.Event{cloud.EventSuspend, cloud.EventStop} {
		vm := running(t)
		must(t, &vm, action)
		r := report(&vm, wire.Phase_PHASE_CRASHED)
		r.Reason = "killed"
		if !ApplyReport(&vm, r, at) || vm.Phase() != cloud.Active(cloud.LCMUnknown) || vm.Orders.Goal != GoalNone || vm.Error == "" {
			t.Errorf("%s, died: %v, orders %+v, %q", action, vm.Phase(), vm.Orders, vm.Error)
		}
		must(t, &vm, cloud.EventResume)
		if vm.LCM != cloud.LCMBootUnknown || vm.Orders.Goal != GoalRunning || vm.Orders.Epoch == r.Epoch {
			t.Errorf("%s, resumed: %v, orders %+v", action, vm.Phase(), vm.Orders)
		}
		vm = running(t)
		must(t, &vm, action)
		if !ApplyReport(&vm, report(&vm, wire.Phase_PHASE_OFF), at) || vm.Phase() != cloud.At(cloud.StatePoweroff) || vm.Orders.Goal != GoalOff {
			t.Errorf("%s, went off: %v, orders %+v", action, vm.Phase(), vm.Orders)
		}
	}
}
