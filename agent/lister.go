package agent

import (
	"context"
	"sync"

	"hayloft/hypervisor"
)

// lister looks at all domains of a driver. Callers who come while a look is under way share the next one.
type lister struct {
	driver hypervisor.Driver
	ctx    context.Context // of the agent: a look serves several callers
	turn   sync.Mutex
	mu     sync.Mutex
	next   *look // not begun yet
	bells  map[int64]chan struct{}
}

type look struct {
	done    chan struct{}
	domains map[int64]hypervisor.Domain
	err     error
}

// fresh returns all domains as they are at some moment after the call.
func (l *lister) fresh(ctx context.Context) (map[int64]hypervisor.Domain, error) {
	l.mu.Lock()
	mine := l.next
	leads := mine == nil
	if leads {
		mine = &look{done: make(chan struct{})}
		l.next = mine
	}
	l.mu.Unlock()
	if leads {
		l.take(mine)
	}
	select {
	case <-mine.done:
		return mine.domains, mine.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (l *lister) take(mine *look) {
	l.turn.Lock()
	defer l.turn.Unlock()
	l.mu.Lock()
	l.next = nil
	l.mu.Unlock()
	defer close(mine.done)
	domains, err := l.driver.List(l.ctx)
	if err != nil {
		mine.err = err
		return
	}
	mine.domains = make(map[int64]hypervisor.Domain, len(domains))
	for _, d := range domains {
		mine.domains[int64(d.ID)] = d
	}
}

// alive says whether a domain has a process.
func alive(d hypervisor.Domain) bool {
	return d.Status == hypervisor.Running || d.Status == hypervisor.Paused
}

// changes returns a channel that gets a value when the domain's status may have changed after this call.
// One caller a machine: its worker.
func (l *lister) changes(vm int64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	bell := make(chan struct{}, 1)
	if l.bells == nil {
		l.bells = make(map[int64]chan struct{})
	}
	l.bells[vm] = bell
	return bell
}

func (l *lister) announce(vm int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bell := l.bells[vm]; bell != nil {
		delete(l.bells, vm)
		bell <- struct{}{}
	}
}

// watch wakes the workers of machines whose domains changed.
func (a *Agent) watch(l *lister, events <-chan int) {
	for id := range events {
		l.announce(int64(id))
		a.kick(int64(id))
	}
}
