// Package lifecycle carries each machine from state to state: it turns what somebody asks for and what
// hosts report into transitions, and transitions into orders for the hosts.
package lifecycle

import (
	"slices"
	"time"

	"hayloft/cloud"
)

// Goals of a machine on its host, as cloud.Orders has them.
const (
	GoalNone      = ""
	GoalRunning   = "running"
	GoalOff       = "off"
	GoalSuspended = "suspended"
	GoalStashed   = "stashed"
	GoalGone      = "gone"
)

// Apply carries vm through one event: state, orders, history and times. It changes vm only when the
// event is possible; else the error is cloud.Next's. Slices of vm are replaced, never modified in place.
func Apply(vm *cloud.VM, e cloud.Event, now time.Time) error {
	from := vm.Phase()
	to, err := cloud.Next(from, e)
	if err != nil {
		return err
	}
	if to != from {
		vm.PrevState, vm.PrevLCM = vm.State, vm.LCM
		vm.State, vm.LCM = to.State, to.LCM
	}
	history(vm, e, from, to, now)
	stamp(vm, from, to, now)
	order(vm, e, from, to)
	switch {
	case to.State == cloud.StateDone && from.State != cloud.StateDone:
		vm.ETime = now.Unix()
	case to == cloud.Active(cloud.LCMRunning):
		vm.Error = ""
	}
	if to.State != cloud.StatePoweroff {
		vm.Warning = ""
	}
	return nil
}

// order derives from the new phase what the machine's host is to do.
func order(vm *cloud.VM, e cloud.Event, from, to cloud.Phase) {
	was := vm.Orders
	o := &vm.Orders
	switch e {
	case cloud.EventReboot, cloud.EventRebootHard:
		o.Reboot++
		o.RebootHard = e == cloud.EventRebootHard
		return
	case cloud.EventRecoverFailure:
		o.Goal = GoalNone
	case cloud.EventSaveas, cloud.EventSaveasDone, cloud.EventSaveasFailed, cloud.EventResched, cloud.EventUnresched,
		cloud.EventDiskCache, cloud.EventLost, cloud.EventFound:
		return
	default:
		if goal, keep := goalOf(to); !keep {
			o.Goal = goal
		}
	}
	leave(vm, e, to)
	stash(vm, to)
	o.Hard = hard(e, from, to, was.Hard)
	o.WithMemory = to.LCM == cloud.LCMSaveStop || to.LCM == cloud.LCMEpilogStop
	if to.LCM == cloud.LCMRunning {
		o.Restore, o.Unstash = was.Restore, was.Unstash
	} else {
		o.Restore = to.LCM == cloud.LCMPrologResume || to.LCM == cloud.LCMBootStopped || to.LCM == cloud.LCMBootSuspended
		o.Unstash = vm.Stashed && (o.Goal == GoalRunning || o.Goal == GoalGone)
	}
	if !sameOrders(was, *o) || e == cloud.EventRecoverRetry || repeats(e) {
		o.Epoch++
	}
}

// leave takes the machine off its host where the phase says that nothing of it is there any more. A
// machine that is DONE and still has a host owes a clean-up: the host is told to remove what it finds.
func leave(vm *cloud.VM, e cloud.Event, to cloud.Phase) {
	switch to.State {
	case cloud.StateDone:
		if vm.HostID >= 0 && e != cloud.EventEpilogDone && e != cloud.EventCleanupDone {
			vm.Orders.Goal = GoalGone
			return
		}
		vm.HostID = -1
	case cloud.StateStopped, cloud.StateUndeployed, cloud.StatePending, cloud.StateHold:
		vm.HostID = -1
	}
}

// stash remembers whether the system datastore holds something of the machine.
func stash(vm *cloud.VM, to cloud.Phase) {
	switch to.LCM {
	case cloud.LCMEpilogStop, cloud.LCMEpilogUndeploy:
		vm.Stashed, vm.StashedMemory = true, to.LCM == cloud.LCMEpilogStop
	case cloud.LCMRunning:
		vm.Stashed, vm.StashedMemory = false, false
	}
	if to.State == cloud.StateDone && vm.HostID < 0 {
		vm.Stashed, vm.StashedMemory = false, false
	}
}

// repeats are events after which the host must try again although the goal is the same.
func repeats(e cloud.Event) bool {
	switch e {
	case cloud.EventResume, cloud.EventDeploy, cloud.EventDeployStopped, cloud.EventDeployUndeployed,
		cloud.EventCleanupFailed:
		return true
	}
	return false
}

func sameOrders(a, b cloud.Orders) bool {
	return a.Goal == b.Goal && a.Hard == b.Hard && a.WithMemory == b.WithMemory &&
		a.Unstash == b.Unstash && a.Restore == b.Restore
}

// goalOf is what a host must strive for while a machine is in the phase. keep: as before.
func goalOf(p cloud.Phase) (goal string, keep bool) {
	switch p.State {
	case cloud.StateActive:
	case cloud.StatePoweroff:
		return GoalOff, false
	case cloud.StateSuspended:
		return GoalSuspended, false
	default:
		return GoalNone, false
	}
	switch p.LCM {
	case cloud.LCMShutdown, cloud.LCMEpilog, cloud.LCMCleanupDelete, cloud.LCMCleanupResubmit:
		return GoalGone, false
	case cloud.LCMShutdownPoweroff:
		return GoalOff, false
	case cloud.LCMSaveSuspend:
		return GoalSuspended, false
	case cloud.LCMSaveStop, cloud.LCMEpilogStop, cloud.LCMShutdownUndeploy, cloud.LCMEpilogUndeploy:
		return GoalStashed, false
	case cloud.LCMHotplugSaveas, cloud.LCMHotplugSaveasPoweroff, cloud.LCMHotplugSaveasSuspended:
		return "", true
	}
	if p.LCM.Failure() {
		return "", true
	}
	return GoalRunning, false
}

func hard(e cloud.Event, from, to cloud.Phase, was bool) bool {
	switch e {
	case cloud.EventTerminateHard, cloud.EventPoweroffHard, cloud.EventUndeployHard:
		return true
	case cloud.EventRecoverRetry, cloud.EventShutdownDone, cloud.EventEpilogFailed:
		return was
	}
	if to.LCM == cloud.LCMCleanupDelete || to.LCM == cloud.LCMCleanupResubmit || to.State == cloud.StateDone {
		return true
	}
	// A machine that is not known to run is not asked to power off.
	return from.LCM == cloud.LCMUnknown && to.LCM != cloud.LCMUnknown && to.LCM != cloud.LCMRunning &&
		to.LCM != cloud.LCMBootUnknown
}

// history opens a record when the machine comes onto a host and closes it when it leaves.
func history(vm *cloud.VM, e cloud.Event, from, to cloud.Phase, now time.Time) {
	n := len(vm.History)
	if n == 0 {
		return
	}
	last := vm.History[n-1]
	switch {
	case to == cloud.Active(cloud.LCMRunning) && last.RSTime == 0:
		last.RSTime = now.Unix()
	case from.LCM == cloud.LCMRunning && to.State != cloud.StateActive && last.RETime == 0:
		last.RETime = now.Unix()
	}
	switch e {
	case cloud.EventTerminate, cloud.EventTerminateHard, cloud.EventPoweroff, cloud.EventPoweroffHard, cloud.EventSuspend,
		cloud.EventStop, cloud.EventUndeploy, cloud.EventUndeployHard, cloud.EventRecoverDelete:
		last.Action = string(e)
	}
	switch to.State {
	case cloud.StateDone, cloud.StateStopped, cloud.StateUndeployed, cloud.StatePending:
		if last.ETime == 0 {
			last.ETime = now.Unix()
		}
		if last.RSTime != 0 && last.RETime == 0 {
			last.RETime = now.Unix()
		}
	}
	if last != vm.History[n-1] {
		vm.History = slices.Clone(vm.History)
		vm.History[n-1] = last
	}
}

func stamp(vm *cloud.VM, from, to cloud.Phase, now time.Time) {
	if to.State == cloud.StatePending && from.State != cloud.StatePending {
		vm.Timing.Submitted = now.UnixNano() // from now on it waits for the scheduler
	}
	if to == cloud.Active(cloud.LCMRunning) && vm.Timing.Running == 0 {
		vm.Timing.Running = now.UnixNano()
	}
}

// Place puts a machine on a host: the deploy event with its history record.
func Place(vm *cloud.VM, host cloud.Host, now time.Time) error {
	kept := cloud.StatePending
	if vm.Stashed {
		kept = cloud.StateUndeployed
		if vm.StashedMemory {
			kept = cloud.StateStopped
		}
	}
	before := *vm
	vm.HostID = host.ID
	vm.History = append(slices.Clip(vm.History), cloud.History{
		Seq: len(vm.History), HostID: host.ID, Hostname: host.Name, STime: now.Unix()})
	vm.SchedMessage = ""
	vm.Timing = cloud.Timing{Submitted: vm.Timing.Submitted, Scheduled: now.UnixNano()}
	if err := Apply(vm, cloud.DeployEvent(before.State, kept), now); err != nil {
		*vm = before
		return err
	}
	return nil
}
