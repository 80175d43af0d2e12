package hypervisortest

import "hayloft/hypervisor"

type test struct {
	name  string
	run   func(*rig)
	needs string // "", or a part of the harness
}

func (c test) missing(h Harness) string {
	has := map[string]bool{
		"": true, "Failing": h.Failing != nil, "Slow": h.Slow != nil, "Invalid": h.Invalid != nil,
		"PowerOff": h.PowerOff != nil, "KillProcess": h.KillProcess != nil,
		"Console": h.Console, "Meter": h.Meter, "Freeze": h.Freeze, "Save": h.Save,
	}
	if has[c.needs] {
		return ""
	}
	return c.needs
}

// suite is every test, in the order of the contract.
var suite = []test{
	{name: "NameAndProbe", run: nameAndProbe},
	{name: "StartRunsAndIsIdempotent", run: startRuns},
	{name: "StartRefusesAnInvalidMachine", run: startRefuses, needs: "Invalid"},
	{name: "FailedStartLeavesNothing", run: failedStart, needs: "Failing"},
	{name: "StartHonoursItsContext", run: startHonoursContext},
	{name: "UnknownDomain", run: unknownDomain},
	{name: "ShutdownThenStartAgain", run: shutdown},
	{name: "KillThenStartAgain", run: kill},
	{name: "KillInterruptsStart", run: killInterruptsStart, needs: "Slow"},
	{name: "RemoveInterruptsStart", run: removeInterruptsStart, needs: "Slow"},
	{name: "SoftRebootKeepsTheDomain", run: func(r *rig) { reboot(r, false) }},
	{name: "HardRebootKeepsTheDomain", run: func(r *rig) { reboot(r, true) }},
	{name: "StoppedDomain", run: stoppedDomain},
	{name: "GuestPowersOff", run: guestPowersOff, needs: "PowerOff"},
	{name: "ProcessKilled", run: processKilled, needs: "KillProcess"},
	{name: "RemoveRunning", run: removeRunning},
	{name: "Adoption", run: adoption},
	{name: "PoweredOffWhileAway", run: poweredOffWhileAway, needs: "PowerOff"},
	{name: "KilledWhileAway", run: killedWhileAway, needs: "KillProcess"},
	{name: "Events", run: events},
	{name: "SaveAndRestore", run: saveAndRestore, needs: "Save"},
	{name: "FailedSaveGoesOn", run: failedSave},
	{name: "Console", run: console, needs: "Console"},
	{name: "Usage", run: usage, needs: "Meter"},
	{name: "Freeze", run: freeze, needs: "Freeze"},
	{name: "Races", run: races},
	{name: "ManyInParallel", run: many},
}

// The optional interfaces must be what the harness says.
func nameAndProbe(r *rig) {
	c, err := r.driver.Probe(r.ctx)
	r.must(err)
	if r.driver.Name() == "" || c.Version == "" {
		r.Errorf("name %q, version %q", r.driver.Name(), c.Version)
	}
	_, consoler := r.driver.(hypervisor.Consoler)
	_, meter := r.driver.(hypervisor.Meter)
	_, freezer := r.driver.(hypervisor.Freezer)
	if consoler != r.Console || meter != r.Meter || freezer != r.Freeze {
		r.Errorf("driver is Consoler %v, Meter %v, Freezer %v; the harness says %v, %v, %v", consoler, meter, freezer, r.Console, r.Meter, r.Freeze)
	}
	if domains := r.list(); len(domains) != 0 {
		r.Errorf("a new state directory has domains: %v", domains)
	}
}
