package hypervisortest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

func startRuns(r *rig) {
	before := time.Now()
	m := r.machine()
	r.must(r.driver.Start(r.ctx, m))
	first := r.running(m)
	if since := first.Started.Sub(before); since < -2*time.Second || since > time.Minute {
		r.Errorf("started at %v, asked for at %v", first.Started, before)
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

// interrupt lets end come while Start is under way; both must be done long before Start alone would.
func interrupt(r *rig, end func(hypervisor.Machine)) {
	m := r.keep(r.Slow(r, r.FirstID))
	var group sync.WaitGroup
	var err error
	began := time.Now()
	group.Go(func() { err = r.driver.Start(r.ctx, m) })
	// There is no event to wait for between "asked" and "runs"; this is well inside the Start.
	time.Sleep(100 * time.Millisecond)
	end(m)
	group.Wait()
	if err == nil {
		r.Error("the interrupted Start says success")
	}
	if took := time.Since(began); took > r.SlowFor*9/10 {
		r.Errorf("start and its interruption took %v", took)
	}
	r.gone(m)
}
