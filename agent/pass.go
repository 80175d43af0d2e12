package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/wire"
)

// pass is one look of a worker at its machine: from what should be and what was reached to the next steps.
type pass struct {
	*Agent
	m        *machine
	want     *wire.Assignment
	r        *reached
	received time.Time
	driver   hypervisor.Driver // nil when this host has none of that name
	lister   *lister

	listed     bool      // the driver knew a domain at the last look
	progressed time.Time // last report of progress
}

// slots bound how much of each kind of work is done at a time.
type slots struct{ prepare, start, stop chan struct{} }

// hold waits for a slot; the caller gives it back.
func hold(ctx context.Context, slot chan struct{}) (giveBack func(), err error) {
	select {
	case slot <- struct{}{}:
		return func() { <-slot }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (p *pass) vm() int64      { return p.m.vm }
func (p *pass) id() int        { return int(p.m.vm) }
func (p *pass) dir() string    { return p.cfg.machineDir(p.m.vm) }
func (p *pass) memory() string { return filepath.Join(p.dir(), "memory") }

// stepError is a failure of a step that a goal is made of.
type stepError struct {
	step wire.Step
	err  error
}

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

func failed(step wire.Step, err error) error {
	if err == nil {
		return nil
	}
	return &stepError{step, err}
}

// run brings the machine as near to its goal as it gets. A failure is kept and reported, and ends the
// work on this epoch; that the pass was superseded or the agent stops is no failure.
func (p *pass) run(ctx context.Context) {
	err := p.converge(ctx)
	if err == nil || ctx.Err() != nil {
		return
	}
	if !errors.Is(err, errUnsure) {
		err = p.fail(ctx, err)
	}
	if err != nil && ctx.Err() == nil {
		p.leaveUnsure(err)
	}
}

// fail keeps and shows a failure. Saves of disks that were asked for get their results nevertheless.
func (p *pass) fail(ctx context.Context, err error) error {
	step := wire.Step_STEP_UNSPECIFIED
	if e := (*stepError)(nil); errors.As(err, &e) {
		step = e.step
	}
	p.r.Failure = &failure{step, err.Error(), fault.ClassOf(err).String()}
	if err := p.keep(); err != nil {
		p.r.Failure = nil
		return err
	}
	p.show(wire.Phase_PHASE_FAILED)
	return p.saveDisks(ctx)
}

// errUnsure marks that the agent could not look at the domain or keep its record: no failure of the
// machine, and to be tried again at the next audit.
var errUnsure = errors.New("not certain")

func (p *pass) leaveUnsure(err error) {
	p.log.Error("machine: left as it is for now", "vm", p.vm(), "error", err)
	p.mu.Lock()
	p.m.unsure = true
	p.mu.Unlock()
}

func (p *pass) converge(ctx context.Context) error {
	p.begin()
	p.pick()
	if p.r.Failure != nil {
		over, err := p.failureIsOver(ctx)
		if err != nil || !over {
			p.show(wire.Phase_PHASE_FAILED)
			return p.saveDisks(ctx) // whatever has failed, its disks are here
		}
		p.r.Failure = nil
	}
	var err error
	switch p.want.Goal {
	case wire.Goal_GOAL_UNSPECIFIED:
		err = p.goalNone(ctx)
	case wire.Goal_GOAL_RUNNING:
		err = p.goalRunning(ctx)
	case wire.Goal_GOAL_OFF:
		err = p.goalOff(ctx)
	case wire.Goal_GOAL_SUSPENDED:
		err = p.goalSuspended(ctx)
	case wire.Goal_GOAL_STASHED:
		err = p.goalStashed(ctx)
	case wire.Goal_GOAL_GONE:
		err = p.goalGone(ctx)
	default:
		err = fault.Errorf(fault.Invalid, "machine %d: goal %v is unknown to this agent", p.vm(), p.want.Goal)
	}
	if err != nil {
		return err
	}
	return p.saveDisks(ctx)
}

// begin starts the book of a new epoch.
func (p *pass) begin() {
	listed := make(map[uint64]bool, len(p.want.Saves))
	for _, save := range p.want.Saves {
		listed[save.Operation] = true
	}
	for operation := range p.r.Saves {
		if !listed[operation] {
			delete(p.r.Saves, operation)
		}
	}
	if p.r.Epoch == p.want.Epoch {
		return
	}
	p.r.Epoch, p.r.Failure, p.r.StopSince, p.r.Orphan = p.want.Epoch, nil, 0, false
	if p.received.IsZero() { // before this agent began
		p.received = time.Now()
	}
	p.r.Timing = timing{Received: p.received.UnixNano()}
}

// pick finds the driver of the machine: that of its domain, else the one it is to have.
func (p *pass) pick() {
	name := p.r.Hypervisor
	if name == "" || p.r.Domain == noDomain && p.want.Machine != nil {
		name = p.want.GetMachine().GetHypervisor()
	}
	p.driver, p.lister = p.cfg.Hypervisors[name], p.listers[name]
	if p.driver != nil {
		p.r.Hypervisor = name
	}
}

// failureIsOver says whether a guest that would not stop or be saved has ended after all.
func (p *pass) failureIsOver(ctx context.Context) (bool, error) {
	if p.r.Failure.Step != wire.Step_STEP_SHUTDOWN && p.r.Failure.Step != wire.Step_STEP_SAVE {
		return false, nil
	}
	lives, err := p.settle(ctx)
	return !lives && err == nil && p.r.Domain != noDomain, err
}

// keep writes the record.
func (p *pass) keep() error {
	if err := p.records.reach(p.vm(), p.r); err != nil {
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	return nil
}

// step does one thing with an effect, between two points where a test may crash the agent.
func (p *pass) step(ctx context.Context, name string, effect func() error) error {
	if err := p.at(ctx, name+" before"); err != nil {
		return err
	}
	if err := effect(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return p.at(ctx, name+" after")
}

func (p *pass) at(ctx context.Context, point string) error {
	if p.hook != nil {
		p.hook(p.vm(), point)
	}
	return context.Cause(ctx)
}

// note changes the record and writes it.
func (p *pass) note(ctx context.Context, name string, change func(*reached)) error {
	return p.step(ctx, name, func() error {
		change(p.r)
		return p.keep()
	})
}

// busy says what the pass is doing from now on; a newer assignment that came in the meantime and would
// interrupt that does so now.
func (p *pass) busy(ctx context.Context, doing activity) error {
	p.mu.Lock()
	p.m.doing = doing
	if newest := p.m.assignment; newest != p.want && interrupts(doing, p.want, newest) {
		p.m.cancel(errSuperseded)
	}
	p.mu.Unlock()
	return context.Cause(ctx)
}

// cleanup is a context for taking back after a failure, also when the pass was just cancelled.
func (p *pass) cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), p.pace.stopAtEnd)
}

// end notes that the goal is reached, once an epoch.
func (p *pass) end(ctx context.Context, name string, phase wire.Phase, change func(*reached)) error {
	err := p.note(ctx, name, func(r *reached) {
		if r.Timing.End == 0 {
			r.Timing.End = time.Now().UnixNano()
		}
		change(r)
	})
	if err == nil {
		p.show(phase)
	}
	return err
}

// dropped forgets a machine that the server no longer knows, unless something of it is still here: then
// it is kept as an orphan and left alone.
func (p *pass) dropped() {
	p.accepting.Lock()
	defer p.accepting.Unlock()
	p.mu.Lock()
	returned := !p.m.dropped
	p.mu.Unlock()
	if returned {
		return
	}
	if r := p.r; (r.Disks == noDisks || r.Disks == stashed || r.Disks == disksGone) && r.Domain == noDomain {
		if err := p.records.forget(p.vm()); err != nil {
			p.log.Error("machine: not forgotten", "vm", p.vm(), "error", err)
			return
		}
		p.mu.Lock()
		delete(p.machines, p.vm())
		delete(p.dirty, p.vm())
		p.mu.Unlock()
		p.releaseUnused(p.ctx)
		return
	}
	if !p.r.Orphan {
		p.r.Orphan = true
		if err := p.keep(); err != nil {
			p.log.Error("machine: not kept as orphan", "vm", p.vm(), "error", err)
		}
		p.log.Warn("machine: the server does not know it, left alone", "vm", p.vm())
	}
	ring(p.hostBell)
}

// makeDir makes the machine's own directory.
func (p *pass) makeDir() error {
	if err := os.MkdirAll(p.dir(), 0o711); err != nil {
		return err
	}
	return os.Chmod(p.dir(), 0o711)
}
