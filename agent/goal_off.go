package agent

import (
	"context"
	"time"

	"hayloft/cloud/fault"
	"hayloft/wire"
)

// goalOff: domain off, disks kept, and what was written to persistent images in their repositories, as far as those
// can be reached.
func (p *pass) goalOff(ctx context.Context) error {
	if err := p.stop(ctx, wire.Phase_PHASE_STOPPING); err != nil {
		return err
	}
	if p.r.Timing.End == 0 || p.r.Warning != "" {
		if err := p.drainOff(ctx); err != nil {
			return err
		}
	}
	if p.r.Timing.End != 0 {
		p.show(wire.Phase_PHASE_OFF)
		return nil
	}
	return p.end(ctx, "note off", wire.Phase_PHASE_OFF, func(r *reached) {
		if r.Domain != noDomain && r.Domain != saved {
			r.Domain = domainOff
		}
	})
}

// stop ends the domain as the assignment says: asked and waited for, or cut.
func (p *pass) stop(ctx context.Context, phase wire.Phase) error {
	lives, err := p.settle(ctx)
	if err != nil {
		return failed(wire.Step_STEP_SHUTDOWN, err)
	}
	if lives {
		p.show(phase)
		if p.want.Hard {
			err = p.kill(ctx)
		} else {
			err = p.askToPowerOff(ctx)
		}
		if err != nil {
			return failed(wire.Step_STEP_SHUTDOWN, err)
		}
		if err := p.note(ctx, "note stopped", func(r *reached) { r.Domain, r.Reason = domainOff, "" }); err != nil {
			return err
		}
	}
	return failed(wire.Step_STEP_SHUTDOWN, p.unplug(ctx))
}

func (p *pass) kill(ctx context.Context) error {
	giveBack, err := hold(ctx, p.slots.stop)
	if err != nil {
		return err
	}
	defer giveBack()
	return p.step(ctx, "kill", func() error {
		err := p.driver.Kill(ctx, p.id())
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		return err
	})
}

// askToPowerOff asks the guest again and again until it has ended or its time is over. The time counts
// from the first request, also when agents come and go meanwhile.
func (p *pass) askToPowerOff(ctx context.Context) error {
	if err := p.busy(ctx, awaitingShutdown); err != nil {
		return err
	}
	if p.r.StopSince == 0 {
		err := p.note(ctx, "note stopping", func(r *reached) { r.StopSince = time.Now().UnixNano() })
		if err != nil {
			return err
		}
	}
	patience := time.Duration(p.want.ShutdownSeconds) * time.Second
	if patience <= 0 {
		patience = time.Minute
	}
	end := time.NewTimer(time.Until(time.Unix(0, p.r.StopSince).Add(patience)))
	defer end.Stop()
	for {
		if err := p.step(ctx, "shutdown", func() error { return p.shutdown(ctx) }); err != nil {
			return err
		}
		again := time.NewTimer(p.pace.askAgain)
		ended, err := p.awaitEnd(ctx, again.C, end.C)
		again.Stop()
		switch {
		case err != nil || ended:
			return err
		case time.Since(time.Unix(0, p.r.StopSince)) >= patience:
			return fault.Errorf(fault.Busy, "machine %d: the guest did not power off within %s and still runs", p.vm(), patience)
		}
	}
}

func (p *pass) shutdown(ctx context.Context) error {
	giveBack, err := hold(ctx, p.slots.stop)
	if err != nil {
		return err
	}
	defer giveBack()
	err = p.driver.Shutdown(ctx, p.id())
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.WrongState) {
		return nil // it ended meanwhile
	}
	return err
}

// awaitEnd waits until the domain has ended or one of the timers fires.
func (p *pass) awaitEnd(ctx context.Context, again, end <-chan time.Time) (ended bool, err error) {
	for {
		changed := p.lister.changes(p.vm())
		domains, err := p.lister.fresh(ctx)
		if err != nil {
			return false, err
		}
		if !alive(domains[p.vm()]) {
			return true, nil
		}
		select {
		case <-changed:
		case <-again:
			return false, nil
		case <-end:
			return false, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}
