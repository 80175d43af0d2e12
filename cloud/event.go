package cloud

// Event is something that happens to a machine: an action that somebody asks for, the end of a step,
// or an observation.
type Event string

// What a user asks for. The names are those of OpenNebula's one.vm.action where it has one.
const (
	EventDeploy           Event = "deploy"            // onto a host for the first time
	EventDeployStopped    Event = "deploy-stopped"    // onto a host again, from saved memory and disks
	EventDeployUndeployed Event = "deploy-undeployed" // onto a host again, from kept disks
	EventHold             Event = "hold"
	EventRelease          Event = "release"
	EventPoweroff         Event = "poweroff"
	EventPoweroffHard     Event = "poweroff-hard"
	EventSuspend          Event = "suspend"
	EventStop             Event = "stop"
	EventUndeploy         Event = "undeploy"
	EventUndeployHard     Event = "undeploy-hard"
	EventResume           Event = "resume"
	EventReboot           Event = "reboot"
	EventRebootHard       Event = "reboot-hard"
	EventTerminate        Event = "terminate"
	EventTerminateHard    Event = "terminate-hard"
	EventSaveas           Event = "saveas"
	EventResize           Event = "resize"     // CPU, VCPU, MEMORY
	EventDiskCache        Event = "disk-cache" // CACHE_MODE, CACHE_SIZE, PRELOAD_SIZE of a disk, from the next start on
	EventResched          Event = "resched"
	EventUnresched        Event = "unresched"
)

// The operations of one.vm.recover, in the order of their codes 0 to 5.
const (
	EventRecoverFailure  Event = "recover-failure"
	EventRecoverSuccess  Event = "recover-success"
	EventRecoverRetry    Event = "recover-retry"
	EventRecoverDelete   Event = "recover-delete"
	EventRecoverRecreate Event = "recover-recreate"
	EventRecoverDeleteDB Event = "recover-delete-db"
)

// How a step ends.
const (
	EventCreated         Event = "created"
	EventCreatedHold     Event = "created-hold"
	EventCreatedCloning  Event = "created-cloning" // an image it needs is still LOCKED
	EventCloneDone       Event = "clone-done"
	EventCloneDoneHold   Event = "clone-done-hold" // it was created with hold
	EventCloneFailed     Event = "clone-failed"
	EventPrologDone      Event = "prolog-done"
	EventPrologFailed    Event = "prolog-failed"
	EventBootDone        Event = "boot-done"
	EventBootFailed      Event = "boot-failed"
	EventShutdownDone    Event = "shutdown-done"
	EventShutdownRefused Event = "shutdown-refused" // the guest went on running
	EventSaveDone        Event = "save-done"
	EventSaveFailed      Event = "save-failed"
	EventEpilogDone      Event = "epilog-done"
	EventEpilogFailed    Event = "epilog-failed"
	EventSaveasDone      Event = "saveas-done"
	EventSaveasFailed    Event = "saveas-failed"
	EventResizeDone      Event = "resize-done"
	EventResizeFailed    Event = "resize-failed"
	EventCleanupDone     Event = "cleanup-done"
	EventCleanupFailed   Event = "cleanup-failed"
)

// What a host reports, or fails to.
const (
	EventGuestOff Event = "guest-off" // the machine stopped by itself, cleanly
	EventLost     Event = "lost"      // the machine vanished, or its host cannot be reached
	EventFound    Event = "found"     // it is seen running again
)

// DeployEvent chooses among the deploy events for a machine in state from. kept is the state in which
// its disks were last put away: StateStopped, StateUndeployed, or anything else for none. It matters
// for a machine that was resumed into PENDING, and perhaps held there.
func DeployEvent(from, kept State) Event {
	if from == StateStopped || from == StateUndeployed {
		kept = from
	}
	switch kept {
	case StateStopped:
		return EventDeployStopped
	case StateUndeployed:
		return EventDeployUndeployed
	}
	return EventDeploy
}

// RecoverEvent is the event of a code of one.vm.recover.
func RecoverEvent(code int) (Event, bool) {
	codes := [...]Event{EventRecoverFailure, EventRecoverSuccess, EventRecoverRetry, EventRecoverDelete,
		EventRecoverRecreate, EventRecoverDeleteDB}
	if code < 0 || code >= len(codes) {
		return "", false
	}
	return codes[code], true
}
