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
