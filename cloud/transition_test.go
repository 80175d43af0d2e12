package cloud

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"hayloft/cloud/fault"

	"pgregory.net/rapid"
)

var done = At(StateDone)

// phases are all phases of the table, in the table's order.
func phases() []Phase {
	var all []Phase
	for _, t := range Table() {
		for _, p := range []Phase{t.From, t.To} {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// follow applies events and fails at the first that is refused.
func follow(t *testing.T, from Phase, events ...Event) Phase {
	t.Helper()
	for _, e := range events {
		to, err := Next(from, e)
		if err != nil {
			t.Fatalf("%v, %s: %v", from, e, err)
		}
		from = to
	}
	return from
}

func TestPaths(t *testing.T) {
	for name, c := range map[string]struct {
		from   Phase
		events []Event
		want   Phase
	}{
		"deploy":                  {At(StateInit), []Event{"created", "deploy", "prolog-done", "boot-done"}, running},
		"held":                    {At(StateInit), []Event{"created-hold", "release", "hold", "deploy"}, Active(LCMProlog)},
		"image still written":     {At(StateInit), []Event{"created-cloning", "clone-done"}, At(StatePending)},
		"image never written":     {At(StateInit), []Event{"created-cloning", "clone-failed"}, At(StateCloningFailure)},
		"poweroff and resume":     {running, []Event{"poweroff", "shutdown-done", "resume", "boot-done"}, running},
		"poweroff refused":        {running, []Event{"poweroff", "shutdown-refused"}, running},
		"poweroff made hard":      {running, []Event{"poweroff", "poweroff-hard", "shutdown-done"}, At(StatePoweroff)},
		"resume fails":            {At(StatePoweroff), []Event{"resume", "boot-failed"}, At(StatePoweroff)},
		"suspend and resume":      {running, []Event{"suspend", "save-done", "resume", "boot-done"}, running},
		"restore fails":           {At(StateSuspended), []Event{"resume", "boot-failed"}, At(StateSuspended)},
		"suspend fails":           {running, []Event{"suspend", "save-failed"}, running},
		"stop":                    {running, []Event{"stop", "save-done", "epilog-done"}, At(StateStopped)},
		"stop when suspended":     {At(StateSuspended), []Event{"stop", "epilog-done"}, At(StateStopped)},
		"stopped resumes":         {At(StateStopped), []Event{"resume", "deploy-stopped", "prolog-done", "boot-done"}, running},
		"stopped, deployed":       {At(StateStopped), []Event{"deploy-stopped", "prolog-done"}, Active(LCMBootStopped)},
		"stop fails late":         {running, []Event{"stop", "save-done", "epilog-failed"}, Active(LCMEpilogStopFailure)},
		"stop, again":             {Active(LCMEpilogStopFailure), []Event{"recover-retry", "epilog-done"}, At(StateStopped)},
		"undeploy":                {running, []Event{"undeploy", "shutdown-done", "epilog-done"}, At(StateUndeployed)},
		"undeploy when off":       {At(StatePoweroff), []Event{"undeploy", "epilog-done"}, At(StateUndeployed)},
		"undeployed resumes":      {At(StateUndeployed), []Event{"resume", "deploy-undeployed", "prolog-done", "boot-done"}, running},
		"undeployed, no start":    {At(StateUndeployed), []Event{"deploy-undeployed", "prolog-done", "boot-failed"}, Active(LCMBootUndeployFailure)},
		"stopped, no start":       {At(StateStopped), []Event{"deploy-stopped", "prolog-done", "boot-failed"}, Active(LCMBootStoppedFailure)},
		"stopped, no disks":       {At(StateStopped), []Event{"deploy-stopped", "prolog-failed"}, Active(LCMPrologResumeFailure)},
		"undeployed, no disks":    {At(StateUndeployed), []Event{"deploy-undeployed", "prolog-failed"}, Active(LCMPrologUndeployFailure)},
		"terminate":               {running, []Event{"terminate", "shutdown-done", "epilog-done"}, done},
		"terminate hard":          {unknown, []Event{"terminate", "terminate-hard", "shutdown-done", "epilog-done"}, done},
		"terminate put away":      {At(StateStopped), []Event{"terminate", "epilog-done"}, done},
		"terminate pending":       {At(StatePending), []Event{"terminate"}, done},
		"terminate twice":         {done, []Event{"terminate", "terminate-hard"}, done},
		"terminate after failure": {Active(LCMBootFailure), []Event{"terminate", "cleanup-failed", "cleanup-done"}, done},
		"epilog fails":            {Active(LCMEpilog), []Event{"epilog-failed", "recover-retry", "epilog-done"}, done},
		"prolog fails":            {Active(LCMProlog), []Event{"prolog-failed", "recover-retry", "prolog-done", "boot-failed", "recover-retry"}, Active(LCMBoot)},
		"pretend":                 {Active(LCMPrologFailure), []Event{"recover-success", "recover-failure", "recover-success"}, running},
		"recreate":                {running, []Event{"recover-recreate", "cleanup-done"}, At(StatePending)},
		"guest off":               {running, []Event{"guest-off", "resume", "boot-done"}, running},
		"guest off in shutdown":   {Active(LCMShutdownUndeploy), []Event{"guest-off"}, Active(LCMEpilogUndeploy)},
		"lost and found":          {running, []Event{"lost", "found"}, running},
		"lost, started again":     {running, []Event{"lost", "resume", "boot-failed"}, unknown},
		"save as":                 {running, []Event{"saveas", "saveas-done"}, running},
		"save as fails":           {At(StateStopped), []Event{"saveas", "saveas-failed"}, At(StateStopped)},
		"live resize":             {running, []Event{"resize", "resize-failed"}, running},
		"resize":                  {At(StatePoweroff), []Event{"resize"}, At(StatePoweroff)},
		"cache of a disk":         {At(StateStopped), []Event{"disk-cache", "resume", "disk-cache", "hold", "disk-cache"}, At(StateHold)},
		"reboot":                  {running, []Event{"reboot", "reboot-hard"}, running},
	} {
		t.Run(name, func(t *testing.T) {
			if got := follow(t, c.from, c.events...); got != c.want {
				t.Errorf("ends in %v, want %v", got, c.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		from  Phase
		event Event
		want  string
	}{
		{At(StateDone), EventResume, "This action is not available for state DONE"},
		{Active(LCMProlog), EventTerminate, "This action is not available for state PROLOG"},
		{Active(LCMUnknown), EventReboot, "This action is not available for state UNKNOWN"},
		{At(StatePoweroff), EventSuspend, "This action is not available for state POWEROFF"},
		{At(StateSuspended), EventDiskCache, "This action is not available for state SUSPENDED"},
		{running, EventDiskCache, "This action is not available for state RUNNING"},
		{At(StateSuspended), EventResize, "This action is not available for state SUSPENDED"},
		{Active(LCMRunning), EventDeploy, "Deploy action is not available for state RUNNING"},
		{At(StatePending), "dance", "This action is not available for state PENDING"},
	} {
		to, err := Next(c.from, c.event)
		if !fault.Is(err, fault.WrongState) || err.Error() != c.want || to != c.from {
			t.Errorf("%v, %s: %v, %v; want %s", c.from, c.event, to, err, c.want)
		}
	}
}

// The rows of OpenNebula's table of actions: from where each is allowed, and from nowhere else.
func TestActionsAreAllowedWhereOpenNebulaAllowsThem(t *testing.T) {
	failures := func(p Phase) bool { return p.State == StateActive && p.LCM.Failure() }
	in := func(all ...Phase) func(Phase) bool { return func(p Phase) bool { return slices.Contains(all, p) } }
	away := in(At(StateSuspended), At(StatePoweroff), At(StateStopped), At(StateUndeployed))
	early := in(At(StateInit), At(StatePending), At(StateHold), At(StateCloning), At(StateCloningFailure))
	up := in(running, unknown)
	for event, allowed := range map[Event]func(Phase) bool{
		EventTerminate: func(p Phase) bool { return up(p) || away(p) || early(p) || failures(p) || p == done },
		EventTerminateHard: func(p Phase) bool {
			return up(p) || away(p) || early(p) || failures(p) || p == done || p == Active(LCMShutdown)
		},
		EventUndeploy:     in(running, unknown, At(StatePoweroff)),
		EventUndeployHard: in(running, unknown, At(StatePoweroff), Active(LCMShutdownUndeploy)),
		EventPoweroff:     up,
		EventPoweroffHard: in(running, unknown, Active(LCMShutdownPoweroff)),
		EventReboot:       in(running),
		EventRebootHard:   in(running),
		EventHold:         in(At(StatePending)),
		EventRelease:      in(At(StateHold)),
		EventStop:         in(running, At(StateSuspended)),
		EventSuspend:      in(running),
		EventResume:       in(At(StateStopped), At(StateUndeployed), At(StateSuspended), At(StatePoweroff), unknown),
		EventResched:      in(running, unknown, At(StatePoweroff)),
		EventUnresched:    in(running, unknown, At(StatePoweroff)),
		EventSaveas:       func(p Phase) bool { return p == running || away(p) },
		EventRecoverFailure: func(p Phase) bool {
			return p.State == StateActive && p != running && p != unknown || p == At(StateCloningFailure)
		},
		EventRecoverSuccess: func(p Phase) bool {
			return p.State == StateActive && p != running && p != unknown || p == At(StateCloningFailure)
		},
		EventRecoverRetry:    func(p Phase) bool { return p.State == StateActive },
		EventRecoverDelete:   func(Phase) bool { return true },
		EventRecoverRecreate: func(p Phase) bool { return p != done },
		EventRecoverDeleteDB: func(Phase) bool { return true },
	} {
		for _, p := range phases() {
			if _, err := Next(p, event); (err == nil) != allowed(p) {
				t.Errorf("%s from %v: error %v, allowed %v", event, p, err, allowed(p))
			}
		}
	}
}

func TestTableIsSound(t *testing.T) {
	type key struct {
		from  Phase
		event Event
	}
	seen := map[key]bool{}
	for _, tr := range Table() {
		k := key{tr.From, tr.Event}
		if seen[k] {
			t.Errorf("%v, %s stands twice", tr.From, tr.Event)
		}
		seen[k] = true
		if tr.From == done && tr.To != done {
			t.Errorf("%s leaves DONE for %v", tr.Event, tr.To)
		}
	}
	for _, p := range phases() {
		if _, err := strconv.Atoi(p.String()); err == nil {
			t.Errorf("phase %v has no name", p)
		}
		if p.State != StateActive && p.LCM != LCMInit || p.State == StateActive && p.LCM == LCMInit {
			t.Errorf("phase %d/%d mixes STATE and LCM_STATE", p.State, p.LCM)
		}
	}
}

func TestTransientAndFailureStates(t *testing.T) {
	ends := func(p Phase, suffixes ...string) bool {
		return slices.ContainsFunc(Events(p), func(e Event) bool {
			return !strings.HasPrefix(string(e), "recover") && slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(string(e), s) })
		})
	}
	for _, p := range phases() {
		if p.State != StateActive {
			continue
		}
		switch {
		case p.LCM.Failure():
			at := follow(t, p, EventRecoverRetry)
			if at.String()+"_FAILURE" != p.String() {
				t.Errorf("retry of %v leads to %v", p, at)
			}
			if to := follow(t, p, EventRecoverDelete, EventCleanupDone); to != done {
				t.Errorf("delete of %v leads to %v", p, to)
			}
		case p.LCM.Transient():
			if !ends(p, "-done") || !ends(p, "-failed", "-refused") {
				t.Errorf("%v lacks an end: %v", p, Events(p))
			}
		}
	}
	// CLONING_FAILURE has no retry, as in OpenNebula: there recover-success or delete-recreate goes on.
	if to := follow(t, At(StateCloningFailure), EventRecoverRecreate); to != At(StatePending) {
		t.Errorf("recreate of CLONING_FAILURE leads to %v", to)
	}
}

// A machine that wandered anywhere can be deleted, and from every phase it can still get to DONE by
// the ends of steps and what users ask for, without the help of an administrator's recover unless it failed.
func TestWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := At(StateInit)
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			event := rapid.SampledFrom(Events(at)).Draw(t, "event")
			to, err := Next(at, event)
			if err != nil {
				t.Fatalf("%v offers %s and refuses it: %v", at, event, err)
			}
			if at == done && to != done {
				t.Fatalf("%s leaves DONE", event)
			}
			at = to
		}
		deleted, err := Next(at, EventRecoverDelete)
		if err != nil {
			t.Fatalf("%v cannot be deleted: %v", at, err)
		}
		if deleted != done {
			if deleted, err = Next(deleted, EventCleanupDone); err != nil || deleted != done {
				t.Fatalf("delete of %v ends in %v, %v", at, deleted, err)
			}
		}
		if !reachesDone(at) {
			t.Fatalf("%v cannot end in DONE without recover", at)
		}
	})
}

// reachesDone searches for a way to DONE that no recover operation is part of.
func reachesDone(from Phase) bool {
	seen, queue := map[Phase]bool{from: true}, []Phase{from}
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		if p == done {
			return true
		}
		for _, tr := range Table() {
			if tr.From == p && !seen[tr.To] && !strings.HasPrefix(string(tr.Event), "recover") {
				seen[tr.To] = true
				queue = append(queue, tr.To)
			}
		}
	}
	return false
}

func TestEverythingIsReachable(t *testing.T) {
	seen, queue := map[Phase]bool{At(StateInit): true}, []Phase{At(StateInit)}
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		for _, e := range Events(p) {
			if to := follow(t, p, e); !seen[to] {
				seen[to] = true
				queue = append(queue, to)
			}
		}
	}
	for _, p := range phases() {
		if !seen[p] {
			t.Errorf("nothing leads to %v", p)
		}
	}
}

func TestDeployEvent(t *testing.T) {
	for _, c := range []struct {
		from, kept State
		want       Event
	}{
		{StatePending, StateInit, EventDeploy},
		{StateHold, StatePoweroff, EventDeploy},
		{StatePending, StateStopped, EventDeployStopped},
		{StateHold, StateUndeployed, EventDeployUndeployed},
		{StateStopped, StateUndeployed, EventDeployStopped},
		{StateUndeployed, StateInit, EventDeployUndeployed},
	} {
		if got := DeployEvent(c.from, c.kept); got != c.want {
			t.Errorf("DeployEvent(%v, %v) = %s, want %s", c.from, c.kept, got, c.want)
		}
		if _, err := Next(At(c.from), c.want); err != nil {
			t.Error(err)
		}
	}
}

func TestRecoverEvent(t *testing.T) {
	if e, ok := RecoverEvent(3); !ok || e != EventRecoverDelete {
		t.Errorf("code 3 is %s", e)
	}
	for _, code := range []int{-1, 6} {
		if e, ok := RecoverEvent(code); ok {
			t.Errorf("code %d is %s", code, e)
		}
	}
}
