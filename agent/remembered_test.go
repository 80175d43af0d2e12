package agent

import (
	"testing"

	"hayloft/wire"
)

// A new agent that has not looked yet must not call a machine off that its predecessor was about to start.
func TestRememberedMachineIsNotOffBeforeItsStart(t *testing.T) {
	for _, c := range []struct {
		name    string
		goal    wire.Goal
		reached reached
		want    wire.Phase
	}{
		{"first start", wire.Goal_GOAL_RUNNING, reached{Epoch: 1, Disks: ready}, wire.Phase_PHASE_PREPARING},
		{"resumed", wire.Goal_GOAL_RUNNING, reached{Epoch: 3, RunEpoch: 1, Disks: ready, Domain: domainOff}, wire.Phase_PHASE_PREPARING},
		{"resumed after a crash", wire.Goal_GOAL_RUNNING, reached{Epoch: 3, RunEpoch: 1, Disks: ready, Domain: domainDied}, wire.Phase_PHASE_PREPARING},
		{"switched itself off", wire.Goal_GOAL_RUNNING, reached{Epoch: 3, RunEpoch: 3, Disks: ready, Domain: domainOff}, wire.Phase_PHASE_OFF},
		{"died", wire.Goal_GOAL_RUNNING, reached{Epoch: 3, RunEpoch: 3, Disks: ready, Domain: domainDied}, wire.Phase_PHASE_CRASHED},
		{"off and draining", wire.Goal_GOAL_OFF, reached{Epoch: 3, RunEpoch: 2, Disks: ready, Domain: domainOff}, wire.Phase_PHASE_STOPPING},
		{"powered off", wire.Goal_GOAL_OFF, reached{Epoch: 3, RunEpoch: 2, Disks: ready, Domain: domainOff, Timing: timing{End: 1}}, wire.Phase_PHASE_OFF},
	} {
		m := &machine{vm: 1, assignment: &wire.Assignment{Epoch: c.reached.Epoch, Goal: c.goal}, reached: &c.reached}
		if got := m.remembered().Phase; got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
