package hypervisortest

import (
	"context"
	"errors"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

func startRuns(r *rig) {
	before := time.Now()
	m := r.machine()
	r.must(r.driver.Start(r.ctx, m))
	first := r.running(m)
	const clock = 2 * time.Second // what the kernel's times and ours may differ by
	if now := time.Now(); first.Started.Before(before.Add(-clock)) || first.Started.After(now.Add(clock)) {
		r.Errorf("started at %v, asked for at %v, now it is %v", first.Started, before, now)
	}
	r.must(r.driver.Start(r.ctx, m))
	if again := r.running(m); again.PID != first.PID || !again.Started.Equal(first.Started) {
		r.Errorf("second Start changed the domain from %+v to %+v", first, again)
	}
}

func startRefuses(r *rig) {
	m, part := r.Invalid(r, r.FirstID)
	r.keep(m)
	err := r.driver.Start(r.ctx, m)
	r.class(err, fault.Invalid)
	if err != nil && !strings.Contains(err.Error(), part) {
		r.Errorf("error %q does not name %q", err, part)
	}
	r.gone(m)
}

func failedStart(r *rig) {
	m := r.keep(r.Failing(r, r.FirstID))
	if err := r.driver.Start(r.ctx, m); err == nil {
		r.Fatal("the failing machine started")
	}
	r.gone(m)
	good := r.Machine(r, m.ID)
	r.must(r.driver.Start(r.ctx, good))
	r.running(good)
}

func startHonoursContext(r *rig) {
	m := r.machine()
	ctx, cancel := context.WithCancel(r.ctx)
	cancel()
	if err := r.driver.Start(ctx, m); !errors.Is(err, context.Canceled) {
		r.Errorf("start with an ended context: %v, want context canceled", err)
	}
	r.gone(m)
	r.must(r.driver.Start(r.ctx, m))
}

func unknownDomain(r *rig) {
	const id = 987654
	r.must(r.driver.Remove(r.ctx, id))
	r.class(r.driver.Kill(r.ctx, id), fault.NotFound)
	r.class(r.driver.Shutdown(r.ctx, id), fault.NotFound)
	r.class(r.driver.Reboot(r.ctx, id, false), fault.NotFound)
	r.class(r.driver.Reboot(r.ctx, id, true), fault.NotFound)
	save := []fault.Class{fault.NotFound}
	if !r.Save {
		save = append(save, fault.Unsupported)
	}
	r.class(r.driver.Save(r.ctx, id, r.TempDir()+"/saved"), save...)
	if c, ok := r.driver.(hypervisor.Consoler); ok {
		_, err := c.Console(r.ctx, id)
		r.class(err, fault.NotFound)
		_, err = c.ConsoleLog(r.ctx, id, 100)
		r.class(err, fault.NotFound)
	}
	if m, ok := r.driver.(hypervisor.Meter); ok {
		_, err := m.Usage(r.ctx, id)
		r.class(err, fault.NotFound)
	}
	if len(r.list()) != 0 {
		r.Errorf("asking for an unknown domain made one: %v", r.list())
	}
}

func killInterruptsStart(r *rig) {
	interrupt(r, func(m hypervisor.Machine) {
		if err := r.driver.Kill(r.ctx, m.ID); err != nil {
			r.class(err, fault.NotFound) // it was never there
		}
	})
}

func removeInterruptsStart(r *rig) {
	interrupt(r, func(m hypervisor.Machine) { r.must(r.driver.Remove(r.ctx, m.ID)) })
}

// interrupt lets end come while Start is under way. Both must be done, though Start alone would take an hour.
func interrupt(r *rig, end func(hypervisor.Machine)) {
	m := r.keep(r.Slow(r, r.FirstID))
	ended := make(chan error, 1)
	go func() { ended <- r.driver.Start(r.ctx, m) }()
	limit := time.NewTimer(r.Patience)
	defer limit.Stop()
	for {
		// Nothing shows that Start has begun: mostly it is well under way by then, and if not, it is the next time.
		select {
		case <-time.After(100 * time.Millisecond):
			end(m)
		case err := <-ended:
			r.class(err, fault.Busy)
			r.gone(m)
			return
		case <-limit.C:
			r.Fatal("Start goes on")
		}
	}
}
