package hypervisortest

import (
	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

func shutdown(r *rig) {
	m := r.started()
	r.must(r.driver.Shutdown(r.ctx, m.ID))
	r.awaitStatus(m, hypervisor.Off)
	r.must(r.driver.Shutdown(r.ctx, m.ID))
	r.must(r.driver.Start(r.ctx, m))
	r.running(m)
	if d := r.list()[m.ID]; d.Reason != "" {
		r.Errorf("running domain still has the reason %q", d.Reason)
	}
}

func kill(r *rig) {
	m := r.started()
	before := r.running(m)
	r.must(r.driver.Kill(r.ctx, m.ID))
	if d := r.list()[m.ID]; d.Status != hypervisor.Off {
		r.Errorf("after Kill the domain is %+v, want off", d)
	}
	if alive(before.PID) {
		r.Errorf("process %d lives after Kill", before.PID)
	}
	r.must(r.driver.Kill(r.ctx, m.ID))
	r.must(r.driver.Start(r.ctx, m))
	if after := r.running(m); after.Started.Equal(before.Started) {
		r.Errorf("the new process is the killed one: %+v", after)
	}
}

// reboot watches that the domain is running at every look until the guest is up again, also with somebody
// attached to its console.
func reboot(r *rig, hard bool) {
	m := r.started()
	if consoler, ok := r.driver.(hypervisor.Consoler); ok {
		attached, err := consoler.Console(r.ctx, m.ID)
		r.must(err)
		defer attached.Close()
	}
	r.must(r.driver.Reboot(r.ctx, m.ID, hard))
	if r.Console && r.BootMark != "" {
		r.await("second boot", func() bool {
			if d := r.list()[m.ID]; d.Status != hypervisor.Running {
				r.Fatalf("during a reboot the domain is %+v", d)
			}
			return r.boots(m) >= 2
		})
	}
	r.running(m)
	r.must(r.driver.Kill(r.ctx, m.ID))
	if d := r.list()[m.ID]; d.Status != hypervisor.Off {
		r.Errorf("after reboot and Kill the domain is %+v, want off", d)
	}
}

func stoppedDomain(r *rig) {
	m := r.started()
	r.must(r.driver.Kill(r.ctx, m.ID))
	r.class(r.driver.Reboot(r.ctx, m.ID, false), fault.WrongState)
	r.class(r.driver.Reboot(r.ctx, m.ID, true), fault.WrongState)
	r.class(r.driver.Save(r.ctx, m.ID, r.TempDir()+"/saved"), fault.WrongState, fault.Unsupported)
	r.must(r.driver.Shutdown(r.ctx, m.ID))
	if c, ok := r.driver.(hypervisor.Consoler); ok {
		_, err := c.Console(r.ctx, m.ID)
		r.class(err, fault.WrongState)
		log, err := c.ConsoleLog(r.ctx, m.ID, 1<<20)
		r.must(err)
		if r.BootMark != "" && len(log) == 0 {
			r.Error("console log of the ended machine is empty")
		}
	}
	r.must(r.driver.Remove(r.ctx, m.ID))
	r.gone(m)
	r.class(r.driver.Kill(r.ctx, m.ID), fault.NotFound)
}

func guestPowersOff(r *rig) {
	m := r.started()
	r.PowerOff(r, r.stateDir, r.driver, m)
	r.awaitStatus(m, hypervisor.Off)
	r.must(r.driver.Start(r.ctx, m))
	r.running(m)
}

func processKilled(r *rig) {
	m := r.started()
	r.KillProcess(r, r.stateDir, r.driver, m)
	if d := r.awaitStatus(m, hypervisor.Crashed); d.Reason == "" {
		r.Error("a crashed domain gives no reason")
	}
	r.must(r.driver.Kill(r.ctx, m.ID))
	r.must(r.driver.Start(r.ctx, m))
	r.running(m)
}

func removeRunning(r *rig) {
	m, other := r.started(), r.started()
	pid := r.running(m).PID
	r.must(r.driver.Remove(r.ctx, m.ID))
	if alive(pid) {
		r.Errorf("process %d lives after Remove", pid)
	}
	r.gone(m)
	r.must(r.driver.Remove(r.ctx, m.ID))
	r.running(other)
}

func adoption(r *rig) {
	runs, off := r.started(), r.started()
	before := r.running(runs)
	r.must(r.driver.Kill(r.ctx, off.ID))
	r.away()
	r.back()
	after := r.running(runs)
	if after.PID != before.PID || after.Started.Sub(before.Started).Abs().Seconds() > 1 {
		r.Errorf("before the restart %+v, after it %+v", before, after)
	}
	if d := r.list()[off.ID]; d.Status != hypervisor.Off {
		r.Errorf("the killed domain is %+v after the restart, want off", d)
	}
	r.must(r.driver.Start(r.ctx, runs))
	if again := r.running(runs); again.PID != before.PID {
		r.Errorf("Start of an adopted domain replaced process %d by %d", before.PID, again.PID)
	}
	r.awaitBoots(runs, 1)
	r.must(r.driver.Shutdown(r.ctx, runs.ID))
	r.awaitStatus(runs, hypervisor.Off)
	r.must(r.driver.Start(r.ctx, runs))
	r.away()
	r.back()
	r.must(r.driver.Remove(r.ctx, runs.ID))
	r.gone(runs)
	r.away()
	r.back()
	if d, ok := r.list()[runs.ID]; ok {
		r.Errorf("removed domain is back: %+v", d)
	}
}

func poweredOffWhileAway(r *rig) {
	m := r.started()
	r.away()
	r.PowerOff(r, r.stateDir, nil, m)
	r.back()
	r.awaitStatus(m, hypervisor.Off)
}

func killedWhileAway(r *rig) {
	m := r.started()
	r.away()
	r.KillProcess(r, r.stateDir, nil, m)
	r.back()
	r.awaitStatus(m, hypervisor.Crashed)
	r.must(r.driver.Start(r.ctx, m))
	r.running(m)
}
