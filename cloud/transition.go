package cloud

import (
	"slices"

	"hayloft/cloud/fault"
)

// Transition is one edge of the life cycle.
type Transition struct {
	From  Phase
	Event Event
	To    Phase
}

var (
	unstarted  = []Phase{At(StateInit), At(StatePending), At(StateHold), At(StateCloning), At(StateCloningFailure)}
	putAway    = []Phase{At(StateStopped), At(StateSuspended), At(StatePoweroff), At(StateUndeployed)}
	startable  = []Phase{At(StatePending), At(StateHold)}
	unresizing = []Phase{At(StateInit), At(StatePending), At(StateHold), At(StatePoweroff), At(StateUndeployed),
		At(StateCloning), At(StateCloningFailure)}
	recaching = []Phase{At(StatePending), At(StateHold), At(StatePoweroff), At(StateStopped), At(StateUndeployed)}

	running = Active(LCMRunning)
	unknown = Active(LCMUnknown)
)

// step is a transient state with its two ends. A step that fails into a *_FAILURE state waits there
// for a decision; the others go back to where the machine was.
type step struct {
	at       LCMState
	done     Event
	onDone   Phase
	failed   Event
	onFailed Phase
}

// steps follow OpenNebula. Its clean-ups end in success whatever happens; here a failed clean-up is
// tried again, so that nothing stays behind unnoticed.
var steps = []step{
	{LCMProlog, EventPrologDone, Active(LCMBoot), EventPrologFailed, Active(LCMPrologFailure)},
	{LCMPrologResume, EventPrologDone, Active(LCMBootStopped), EventPrologFailed, Active(LCMPrologResumeFailure)},
	{LCMPrologUndeploy, EventPrologDone, Active(LCMBootUndeploy), EventPrologFailed, Active(LCMPrologUndeployFailure)},

	{LCMBoot, EventBootDone, running, EventBootFailed, Active(LCMBootFailure)},
	{LCMBootStopped, EventBootDone, running, EventBootFailed, Active(LCMBootStoppedFailure)},
	{LCMBootUndeploy, EventBootDone, running, EventBootFailed, Active(LCMBootUndeployFailure)},
	{LCMBootPoweroff, EventBootDone, running, EventBootFailed, At(StatePoweroff)},
	{LCMBootSuspended, EventBootDone, running, EventBootFailed, At(StateSuspended)},
	{LCMBootUnknown, EventBootDone, running, EventBootFailed, unknown},

	{LCMShutdown, EventShutdownDone, Active(LCMEpilog), EventShutdownRefused, running},
	{LCMShutdownPoweroff, EventShutdownDone, At(StatePoweroff), EventShutdownRefused, running},
	{LCMShutdownUndeploy, EventShutdownDone, Active(LCMEpilogUndeploy), EventShutdownRefused, running},

	{LCMSaveSuspend, EventSaveDone, At(StateSuspended), EventSaveFailed, running},
	{LCMSaveStop, EventSaveDone, Active(LCMEpilogStop), EventSaveFailed, running},

	{LCMEpilog, EventEpilogDone, At(StateDone), EventEpilogFailed, Active(LCMEpilogFailure)},
	{LCMEpilogStop, EventEpilogDone, At(StateStopped), EventEpilogFailed, Active(LCMEpilogStopFailure)},
	{LCMEpilogUndeploy, EventEpilogDone, At(StateUndeployed), EventEpilogFailed, Active(LCMEpilogUndeployFailure)},

	{LCMHotplugSaveas, EventSaveasDone, running, EventSaveasFailed, running},
	{LCMHotplugSaveasPoweroff, EventSaveasDone, At(StatePoweroff), EventSaveasFailed, At(StatePoweroff)},
	{LCMHotplugSaveasSuspended, EventSaveasDone, At(StateSuspended), EventSaveasFailed, At(StateSuspended)},
	{LCMHotplugSaveasUndeployed, EventSaveasDone, At(StateUndeployed), EventSaveasFailed, At(StateUndeployed)},
	{LCMHotplugSaveasStopped, EventSaveasDone, At(StateStopped), EventSaveasFailed, At(StateStopped)},
	{LCMHotplugResize, EventResizeDone, running, EventResizeFailed, running},

	{LCMCleanupDelete, EventCleanupDone, At(StateDone), EventCleanupFailed, Active(LCMCleanupDelete)},
	{LCMCleanupResubmit, EventCleanupDone, At(StatePending), EventCleanupFailed, Active(LCMCleanupResubmit)},
}

// edges are the events that are not the end of a step, for one or more phases at a time.
var edges = []struct {
	from  []Phase
	event Event
	to    Phase
}{
	{[]Phase{At(StateInit)}, EventCreated, At(StatePending)},
	{[]Phase{At(StateInit)}, EventCreatedHold, At(StateHold)},
	{[]Phase{At(StateInit)}, EventCreatedCloning, At(StateCloning)},
	{[]Phase{At(StateCloning)}, EventCloneDone, At(StatePending)},
	{[]Phase{At(StateCloning)}, EventCloneDoneHold, At(StateHold)},
	{[]Phase{At(StateCloning)}, EventCloneFailed, At(StateCloningFailure)},
	{[]Phase{At(StateCloningFailure)}, EventRecoverSuccess, At(StatePending)},
	{[]Phase{At(StateCloningFailure)}, EventRecoverFailure, At(StateCloningFailure)},

	{[]Phase{At(StatePending)}, EventHold, At(StateHold)},
	{[]Phase{At(StateHold)}, EventRelease, At(StatePending)},
	{startable, EventDeploy, Active(LCMProlog)},
	{append([]Phase{At(StateStopped)}, startable...), EventDeployStopped, Active(LCMPrologResume)},
	{append([]Phase{At(StateUndeployed)}, startable...), EventDeployUndeployed, Active(LCMPrologUndeploy)},

	{[]Phase{running, unknown}, EventTerminate, Active(LCMShutdown)},
	{[]Phase{running, unknown, Active(LCMShutdown)}, EventTerminateHard, Active(LCMShutdown)},
	{[]Phase{running, unknown}, EventPoweroff, Active(LCMShutdownPoweroff)},
	{[]Phase{running, unknown, Active(LCMShutdownPoweroff)}, EventPoweroffHard, Active(LCMShutdownPoweroff)},
	{[]Phase{running, unknown}, EventUndeploy, Active(LCMShutdownUndeploy)},
	{[]Phase{running, unknown, Active(LCMShutdownUndeploy)}, EventUndeployHard, Active(LCMShutdownUndeploy)},
	{[]Phase{At(StatePoweroff)}, EventUndeploy, Active(LCMEpilogUndeploy)},
	{[]Phase{At(StatePoweroff)}, EventUndeployHard, Active(LCMEpilogUndeploy)},
	{[]Phase{running}, EventReboot, running},
	{[]Phase{running}, EventRebootHard, running},
	{[]Phase{running}, EventSuspend, Active(LCMSaveSuspend)},
	{[]Phase{running}, EventStop, Active(LCMSaveStop)},
	{[]Phase{At(StateSuspended)}, EventStop, Active(LCMEpilogStop)},

	{[]Phase{At(StateStopped), At(StateUndeployed)}, EventResume, At(StatePending)},
	{[]Phase{At(StateSuspended)}, EventResume, Active(LCMBootSuspended)},
	{[]Phase{At(StatePoweroff)}, EventResume, Active(LCMBootPoweroff)},
	{[]Phase{unknown}, EventResume, Active(LCMBootUnknown)},

	{[]Phase{running, unknown}, EventGuestOff, At(StatePoweroff)},
	{[]Phase{Active(LCMShutdown)}, EventGuestOff, Active(LCMEpilog)},
	{[]Phase{Active(LCMShutdownPoweroff)}, EventGuestOff, At(StatePoweroff)},
	{[]Phase{Active(LCMShutdownUndeploy)}, EventGuestOff, Active(LCMEpilogUndeploy)},
	{[]Phase{running}, EventLost, unknown},
	{[]Phase{unknown}, EventFound, running},

	{[]Phase{running}, EventSaveas, Active(LCMHotplugSaveas)},
	{[]Phase{At(StatePoweroff)}, EventSaveas, Active(LCMHotplugSaveasPoweroff)},
	{[]Phase{At(StateSuspended)}, EventSaveas, Active(LCMHotplugSaveasSuspended)},
	{[]Phase{At(StateUndeployed)}, EventSaveas, Active(LCMHotplugSaveasUndeployed)},
	{[]Phase{At(StateStopped)}, EventSaveas, Active(LCMHotplugSaveasStopped)},
	{[]Phase{running}, EventResize, Active(LCMHotplugResize)},

	{unstarted, EventTerminate, At(StateDone)},
	{unstarted, EventTerminateHard, At(StateDone)},
	{putAway, EventTerminate, Active(LCMEpilog)},
	{putAway, EventTerminateHard, Active(LCMEpilog)},
	{append([]Phase{At(StateStopped), At(StateUndeployed)}, unstarted...), EventRecoverRecreate, At(StatePending)},
	{[]Phase{At(StatePoweroff), At(StateSuspended)}, EventRecoverRecreate, Active(LCMCleanupResubmit)},
	{append(append([]Phase{At(StateDone)}, unstarted...), putAway...), EventRecoverDelete, At(StateDone)},
	{append(append([]Phase{At(StateDone)}, unstarted...), putAway...), EventRecoverDeleteDB, At(StateDone)},
	{[]Phase{At(StateDone)}, EventTerminate, At(StateDone)},
	{[]Phase{At(StateDone)}, EventTerminateHard, At(StateDone)},

	// There is no step to run again, which OpenNebula does not call an error.
	{[]Phase{running}, EventRecoverRetry, running},
	{[]Phase{unknown}, EventRecoverRetry, unknown},
}

var table = expand()

// expand writes out the rules that hold for many phases.
func expand() []Transition {
	var all []Transition
	add := func(from Phase, e Event, to Phase) { all = append(all, Transition{from, e, to}) }
	anyActive := func(p Phase) {
		add(p, EventRecoverDelete, Active(LCMCleanupDelete))
		add(p, EventRecoverRecreate, Active(LCMCleanupResubmit))
		add(p, EventRecoverDeleteDB, At(StateDone))
	}
	for _, g := range edges {
		for _, from := range g.from {
			add(from, g.event, g.to)
		}
	}
	for _, p := range unresizing {
		add(p, EventResize, p)
	}
	for _, p := range recaching {
		add(p, EventDiskCache, p)
	}
	for _, p := range []Phase{running, unknown, At(StatePoweroff)} {
		add(p, EventResched, p)
		add(p, EventUnresched, p)
	}
	anyActive(running)
	anyActive(unknown)
	for _, s := range steps {
		at := Active(s.at)
		add(at, s.done, s.onDone)
		add(at, s.failed, s.onFailed)
		add(at, EventRecoverSuccess, s.onDone)
		add(at, EventRecoverFailure, s.onFailed)
		add(at, EventRecoverRetry, at)
		anyActive(at)
		if !s.onFailed.LCM.Failure() {
			continue
		}
		add(s.onFailed, EventRecoverSuccess, s.onDone)
		add(s.onFailed, EventRecoverFailure, s.onFailed)
		add(s.onFailed, EventRecoverRetry, at)
		add(s.onFailed, EventTerminate, Active(LCMCleanupDelete))
		add(s.onFailed, EventTerminateHard, Active(LCMCleanupDelete))
		anyActive(s.onFailed)
	}
	return all
}

// Table is the whole life cycle, one edge a row.
func Table() []Transition { return slices.Clone(table) }

// Events are the events that a machine in a phase accepts.
func Events(from Phase) []Event {
	var events []Event
	for _, t := range table {
		if t.From == from {
			events = append(events, t.Event)
		}
	}
	return events
}

// Next is the phase after an event. An event that the phase does not accept is an error of class
// WrongState in OpenNebula's words, which do not repeat the event: the caller says what was asked.
func Next(from Phase, e Event) (Phase, error) {
	for _, t := range table {
		if t.From == from && t.Event == e {
			return t.To, nil
		}
	}
	switch e {
	case EventDeploy, EventDeployStopped, EventDeployUndeployed:
		return from, fault.Errorf(fault.WrongState, "Deploy action is not available for state %v", from)
	}
	return from, fault.Errorf(fault.WrongState, "This action is not available for state %v", from)
}
