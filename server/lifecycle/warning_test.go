package lifecycle

import (
	"testing"

	"hayloft/cloud"
	"hayloft/wire"
)

// What a machine's repositories lack is known for as long as it is off.
func TestWarningOfAMachineThatIsOff(t *testing.T) {
	vm := running(t)
	must(t, &vm, cloud.EventPoweroff)
	r := report(&vm, wire.Phase_PHASE_STOPPING)
	r.ProgressStep = "drain disk 0"
	if ApplyReport(&vm, r, at) || vm.LCM != cloud.LCMShutdownPoweroff {
		t.Fatalf("while it drains: %v", vm.Phase())
	}
	r = report(&vm, wire.Phase_PHASE_OFF)
	r.Warning = "not drained: disk 0 has 3 MB"
	if !ApplyReport(&vm, r, at) || vm.Phase() != cloud.At(cloud.StatePoweroff) || vm.Warning != r.Warning || vm.Error != "" {
		t.Fatalf("off: %v, warning %q, error %q", vm.Phase(), vm.Warning, vm.Error)
	}
	if ApplyReport(&vm, r, at) {
		t.Error("the same again is a change")
	}
	epoch := vm.Orders.Epoch
	must(t, &vm, cloud.EventDiskCache)
	if vm.Orders.Epoch != epoch || vm.Orders.Goal != GoalOff || vm.Warning == "" {
		t.Errorf("a change of caching: %+v, warning %q", vm.Orders, vm.Warning)
	}
	drained := report(&vm, wire.Phase_PHASE_OFF)
	if !ApplyReport(&vm, drained, at) || vm.Warning != "" {
		t.Errorf("drained: warning %q", vm.Warning)
	}
	ApplyReport(&vm, r, at)
	must(t, &vm, cloud.EventResume)
	if vm.Warning != "" {
		t.Errorf("on its way up again: warning %q", vm.Warning)
	}
}

// A machine that is resumed where it is and whose disks cannot be prepared is off again, and says why.
func TestResumeWhoseDisksCannotBePrepared(t *testing.T) {
	for _, way := range []struct {
		down  cloud.Event
		phase wire.Phase
		rest  cloud.Phase
	}{
		{cloud.EventPoweroff, wire.Phase_PHASE_OFF, cloud.At(cloud.StatePoweroff)},
		{cloud.EventSuspend, wire.Phase_PHASE_SUSPENDED, cloud.At(cloud.StateSuspended)},
		{cloud.EventLost, wire.Phase_PHASE_CRASHED, cloud.Active(cloud.LCMUnknown)},
	} {
		vm := running(t)
		must(t, &vm, way.down)
		ApplyReport(&vm, report(&vm, way.phase), at)
		must(t, &vm, cloud.EventResume)
		r := report(&vm, wire.Phase_PHASE_FAILED)
		r.FailedStep, r.Error = wire.Step_STEP_PREPARE, "datastore 1 is away"
		if !ApplyReport(&vm, r, at) || vm.Phase() != way.rest || vm.Error != r.Error {
			t.Errorf("%s: %v, %q; want %v", way.down, vm.Phase(), vm.Error, way.rest)
		}
	}
}
