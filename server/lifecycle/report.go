package lifecycle

import (
	"slices"
	"time"

	"hayloft/cloud"
	"hayloft/wire"
)

// implied lists, per phase that a host reports, the events that this implies, in order. Those that the
// machine's present phase does not accept have happened before, or do not matter.
var implied = map[wire.Phase][]cloud.Event{
	wire.Phase_PHASE_BOOTING:   {cloud.EventPrologDone},
	wire.Phase_PHASE_RUNNING:   {cloud.EventPrologDone, cloud.EventBootDone, cloud.EventFound},
	wire.Phase_PHASE_OFF:       {cloud.EventPrologDone, cloud.EventBootDone, cloud.EventShutdownDone, cloud.EventSaveFailed, cloud.EventGuestOff},
	wire.Phase_PHASE_SUSPENDED: {cloud.EventSaveDone},
	wire.Phase_PHASE_STASHING:  {cloud.EventShutdownDone, cloud.EventSaveDone},
	wire.Phase_PHASE_STASHED:   {cloud.EventShutdownDone, cloud.EventSaveDone, cloud.EventEpilogDone},
	wire.Phase_PHASE_REMOVING:  {cloud.EventShutdownDone},
	wire.Phase_PHASE_GONE:      {cloud.EventShutdownDone, cloud.EventEpilogDone, cloud.EventCleanupDone},
	wire.Phase_PHASE_CRASHED:   {cloud.EventPrologDone, cloud.EventBootFailed, cloud.EventSaveFailed, cloud.EventLost, cloud.EventShutdownDone},
}

// A machine that should run on, after a save that failed, and could not be started again is lost. One that comes back
// where it is (BOOT_POWEROFF and its like) has its disks prepared without a PROLOG.
var impliedByFailure = map[wire.Step][]cloud.Event{
	wire.Step_STEP_PREPARE:  {cloud.EventPrologFailed, cloud.EventBootFailed, cloud.EventLost},
	wire.Step_STEP_BOOT:     {cloud.EventPrologDone, cloud.EventBootFailed, cloud.EventLost},
	wire.Step_STEP_SHUTDOWN: {cloud.EventShutdownRefused},
	wire.Step_STEP_SAVE:     {cloud.EventSaveFailed},
	wire.Step_STEP_STASH:    {cloud.EventShutdownDone, cloud.EventSaveDone, cloud.EventEpilogFailed},
	wire.Step_STEP_REMOVE:   {cloud.EventShutdownDone, cloud.EventEpilogFailed, cloud.EventCleanupFailed},
}

// ApplyReport carries vm through what its host says of it, and reports whether that changed anything. A
// report about other orders than the present ones is old and changes nothing.
func ApplyReport(vm *cloud.VM, r *wire.MachineReport, now time.Time) (changed bool) {
	if r.Epoch != vm.Orders.Epoch {
		return false
	}
	events := implied[r.Phase]
	if r.Phase == wire.Phase_PHASE_FAILED {
		events = impliedByFailure[r.FailedStep]
	}
	if vm.State == cloud.StateDone && vm.HostID >= 0 && r.Phase == wire.Phase_PHASE_GONE {
		settle(vm)
		return true
	}
	for _, e := range events {
		if r.Phase == wire.Phase_PHASE_CRASHED && e == cloud.EventPrologDone && !booting(vm) {
			continue
		}
		if Apply(vm, e, now) == nil {
			changed = true
			if vm.Orders.Epoch != r.Epoch && (e != cloud.EventSaveFailed || r.Phase == wire.Phase_PHASE_FAILED) {
				break // new orders: what else the report says is about the old ones
			}
		}
	}
	if vm.LCM == cloud.LCMUnknown && vm.Orders.Epoch != r.Epoch {
		vm.Orders.Goal = GoalNone // it ended instead of being saved, and nothing starts again by itself
	}
	if message := trouble(r); message != "" && changed {
		vm.Error = message
	}
	if vm.State == cloud.StatePoweroff && r.Phase == wire.Phase_PHASE_OFF && vm.Warning != r.Warning {
		vm.Warning, changed = r.Warning, true
	}
	return timing(vm, r) || changed
}

// settle ends what a DONE machine owed to its host.
func settle(vm *cloud.VM) {
	vm.HostID = -1
	vm.Stashed, vm.StashedMemory = false, false
	vm.Orders = cloud.Orders{Epoch: vm.Orders.Epoch}
}

func booting(vm *cloud.VM) bool {
	switch vm.LCM {
	case cloud.LCMProlog, cloud.LCMPrologResume, cloud.LCMPrologUndeploy:
		return true
	}
	return false
}

// trouble is what a report says went wrong, "" when nothing did.
func trouble(r *wire.MachineReport) string {
	switch r.Phase {
	case wire.Phase_PHASE_FAILED:
		return r.Error
	case wire.Phase_PHASE_CRASHED:
		if r.Reason == "" {
			return "the machine died"
		}
		return "the machine died: " + r.Reason
	}
	return ""
}

// timing takes over the host's moments of a deployment.
func timing(vm *cloud.VM, r *wire.MachineReport) bool {
	if r.Timing == nil || vm.Orders.Goal != GoalRunning || vm.Timing.BootEnd != 0 {
		return false
	}
	was := vm.Timing
	t := &vm.Timing
	t.PrologStart, t.PrologEnd = r.Timing.PrepareStart, r.Timing.PrepareEnd
	t.BootStart, t.BootEnd = r.Timing.BootStart, r.Timing.BootEnd
	t.ReadBytes, t.GivenBytes = r.RepositoryBytes, r.GivenBytes
	return r.Phase == wire.Phase_PHASE_RUNNING && *t != was
}

// SavesDone takes results of disk-saveas out of a machine's orders. The caller updates the images; done
// holds the order that each result answers.
func SavesDone(vm *cloud.VM, r *wire.MachineReport, now time.Time) (done map[*wire.SaveResult]cloud.SaveDisk) {
	done = map[*wire.SaveResult]cloud.SaveDisk{}
	failed := false
	for _, result := range r.Saves {
		i := slices.IndexFunc(vm.Orders.Saves, func(s cloud.SaveDisk) bool { return s.Operation == result.Operation })
		if i < 0 {
			continue
		}
		done[result] = vm.Orders.Saves[i]
		vm.Orders.Saves = slices.Delete(slices.Clone(vm.Orders.Saves), i, i+1)
		if result.Error != "" {
			failed = true
			vm.Error = result.Error
		}
	}
	if len(done) > 0 && len(vm.Orders.Saves) == 0 {
		e := cloud.EventSaveasDone
		if failed {
			e = cloud.EventSaveasFailed
		}
		message := vm.Error
		if Apply(vm, e, now) == nil && failed {
			vm.Error = message
		}
	}
	return done
}
