package agent

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"hayloft/wire"
)

// machine is one machine in the agent's memory. Fields are guarded by Agent.mu, except reached and unremoved, which
// belong to the worker.
type machine struct {
	vm         int64
	assignment *wire.Assignment // what should be; replaced, never changed
	received   time.Time        // when this epoch of it arrived
	dropped    bool             // the server no longer knows the machine
	finished   bool             // gone or stashed: uses no network any more
	reached    *reached
	unremoved  int                 // attempts to remove it that failed, one after the other
	unsure     bool                // the last pass could not look or write: to be tried again
	report     *wire.MachineReport // what is; replaced, never changed

	working bool // a worker exists
	again   bool // there may be something to do
	doing   activity
	cancel  context.CancelCauseFunc // of the worker's present pass
}

// activity is what a worker is busy with, for deciding whether a new assignment may interrupt it.
type activity int

const (
	deciding activity = iota
	preparingDisks
	startingDomain
	awaitingShutdown
	awaitingRetry
	savingMemory
	stashingDisks
	savingDisk
	drainingDisks
	removing
)

// errSuperseded is the cause of a pass that a newer assignment ended.
var errSuperseded = errors.New("superseded by a newer assignment")

// interrupts says whether a new assignment should end what is being done for an old one. What is left
// half-done must be something that every goal can start from.
func interrupts(doing activity, old, next *wire.Assignment) bool {
	if old.Epoch == next.Epoch {
		return false
	}
	leaves := next.Goal != old.Goal
	switch doing {
	case drainingDisks:
		return leaves
	case preparingDisks:
		return leaves || !proto.Equal(old.Machine, next.Machine)
	case startingDomain:
		return leaves && next.Hard
	case awaitingShutdown:
		return true
	case savingMemory, stashingDisks:
		return next.Goal == wire.Goal_GOAL_GONE && next.Hard
	case savingDisk:
		return leaves && (next.Hard || next.Goal == wire.Goal_GOAL_GONE)
	}
	return false
}

// kick lets the machine's worker look again, and makes a worker when there is none.
func (a *Agent) kick(vm int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.machines[vm]
	if m == nil {
		return
	}
	m.again = true
	if !m.working && a.ctx.Err() == nil {
		m.working = true
		a.own(func() { a.work(m) })
	}
}

// work goes through passes until there is nothing left to do, then ends: an idle machine has no goroutine.
func (a *Agent) work(m *machine) {
	for {
		ctx, cancel := context.WithCancelCause(a.ctx)
		a.mu.Lock()
		if !m.again || ctx.Err() != nil {
			m.working = false
			a.mu.Unlock()
			cancel(nil)
			return
		}
		m.again, m.cancel, m.doing = false, cancel, deciding
		p := &pass{Agent: a, m: m, want: m.assignment, r: m.reached, received: m.received}
		dropped := m.dropped
		a.mu.Unlock()
		if dropped {
			p.dropped()
		} else {
			p.run(ctx)
		}
		cancel(nil)
	}
}

// accept takes assignments from the server: kept first, then acted upon.
func (a *Agent) accept(order *wire.Order) error {
	a.accepting.Lock()
	defer a.accepting.Unlock()
	changed := a.changed(order)
	if err := errors.Join(a.records.assign(changed), a.hear()); err != nil {
		return err
	}
	now := time.Now()
	var kicks []int64
	a.mu.Lock()
	for _, wanted := range changed {
		m := a.machines[wanted.Vm]
		if m == nil {
			m = &machine{vm: wanted.Vm, reached: new(reached)}
			a.machines[wanted.Vm] = m
		}
		old := m.assignment
		m.assignment, m.dropped, m.finished = wanted, false, false
		if old == nil || old.Epoch != wanted.Epoch {
			m.received = now
		}
		if old != nil && m.working && interrupts(m.doing, old, wanted) {
			m.cancel(errSuperseded)
		}
		kicks = append(kicks, wanted.Vm)
	}
	for _, vm := range a.gone(order) {
		a.machines[vm].dropped = true
		kicks = append(kicks, vm)
	}
	if order.Full {
		for vm := range a.machines {
			a.markDirty(vm)
			if a.stale && !a.synced { // they may have waited for this
				kicks = append(kicks, vm)
			}
		}
		a.synced = true
	}
	a.mu.Unlock()
	for _, vm := range kicks {
		a.kick(vm)
	}
	if order.Full {
		ring(a.hostBell)
	}
	return nil
}

// changed is what of the order's assignments is new.
func (a *Agent) changed(order *wire.Order) []*wire.Assignment {
	a.mu.Lock()
	defer a.mu.Unlock()
	var changed []*wire.Assignment
	for _, assignment := range order.Assignments {
		m := a.machines[assignment.Vm]
		if m == nil || m.dropped || !proto.Equal(m.assignment, assignment) {
			changed = append(changed, assignment)
		}
	}
	return changed
}

// gone lists machines that the order says the server no longer knows. The caller holds mu.
func (a *Agent) gone(order *wire.Order) []int64 {
	var gone []int64
	for _, vm := range order.Dropped {
		if m := a.machines[vm]; m != nil && !m.dropped {
			gone = append(gone, vm)
		}
	}
	if !order.Full {
		return gone
	}
	named := make(map[int64]bool, len(order.Assignments))
	for _, assignment := range order.Assignments {
		named[assignment.Vm] = true
	}
	for vm, m := range a.machines {
		if !named[vm] && !m.dropped {
			gone = append(gone, vm)
		}
	}
	return gone
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
