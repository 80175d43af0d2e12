package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"hayloft/hypervisor"
)

// boots paces machines that boot: while those that do want more of the host's cores than the limit, no other
// begins. A hundred machines that boot at once take turns on the cores, push each other out of the caches, and
// all of them are ready late; a few at a time are each ready early, and the last one is not later. What a
// machine wants is the time it runs and the time it waits to run: a boot that waits for a disk leaves room.
type boots struct {
	limit float64 // cores; 0 or less: no pacing

	mu      sync.Mutex
	booting map[int64]*booting
	queue   []*ticket
	bell    chan struct{} // rung when there is something to watch
}

type booting struct {
	demand func(context.Context) (hypervisor.Demand, error)
	began  time.Time // zero until the domain has started
	at     time.Time // of the last look
	last   hypervisor.Demand
	wants  float64 // cores, over the last interval; 1 until it is known
	quiet  int     // looks in a row at which it wanted little
}

type ticket struct {
	vm     int64
	demand func(context.Context) (hypervisor.Demand, error)
	turn   chan struct{}
}

const (
	bootLook   = 100 * time.Millisecond
	bootQuiet  = 0.35            // cores below which a machine is taken to idle
	bootLooks  = 3               // looks at which it must idle to be taken as up
	bootCPU    = 15.0            // seconds of processor time after which it is not booting any more, whatever it does
	bootWall   = 3 * time.Minute // and of any time
	bootFactor = 2.0             // default limit, for each core
)

func newBoots(limit float64) *boots {
	return &boots{limit: limit, booting: map[int64]*booting{}, bell: make(chan struct{}, 1)}
}

// enter waits for the machine's turn. After it, the caller says started or left.
func (b *boots) enter(ctx context.Context, vm int64, demand func(context.Context) (hypervisor.Demand, error)) error {
	if b.limit <= 0 {
		return nil
	}
	t := &ticket{vm: vm, demand: demand, turn: make(chan struct{})}
	b.mu.Lock()
	b.queue = append(b.queue, t)
	b.admit()
	b.mu.Unlock()
	b.ring()
	select {
	case <-t.turn:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.queue, t); i >= 0 {
		b.queue = slices.Delete(b.queue, i, i+1)
	} else {
		b.drop(vm)
	}
	return context.Cause(ctx)
}

// started says that the machine's domain runs: from now on what it wants is measured.
func (b *boots) started(vm int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m := b.booting[vm]; m != nil {
		m.began = time.Now()
		m.at = m.began
	}
}

// left says that the machine's domain did not start.
func (b *boots) left(vm int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(vm)
}

func (b *boots) drop(vm int64) {
	delete(b.booting, vm)
	b.admit()
}

// admit lets those begin whose turn it is, under the lock. One machine may always boot.
func (b *boots) admit() {
	wanted := 0.0
	for _, m := range b.booting {
		wanted += m.wants
	}
	for len(b.queue) > 0 && (wanted+1 <= b.limit || len(b.booting) == 0) {
		t := b.queue[0]
		b.queue = b.queue[1:]
		b.booting[t.vm] = &booting{demand: t.demand, wants: 1}
		wanted++
		close(t.turn)
	}
}

func (b *boots) ring() {
	select {
	case b.bell <- struct{}{}:
	default:
	}
}

// run watches booting machines until ctx ends.
func (b *boots) run(ctx context.Context) {
	tick := time.NewTicker(bootLook)
	defer tick.Stop()
	for {
		b.mu.Lock()
		idle := len(b.booting) == 0
		b.mu.Unlock()
		var bell <-chan struct{}
		next := tick.C
		if idle {
			bell, next = b.bell, nil
		}
		select {
		case <-ctx.Done():
			return
		case <-bell:
		case <-next:
			b.look(ctx)
		}
	}
}

// look measures every booting machine and forgets those that are up.
func (b *boots) look(ctx context.Context) {
	b.mu.Lock()
	watched := make(map[int64]*booting, len(b.booting))
	for vm, m := range b.booting {
		if !m.began.IsZero() {
			watched[vm] = m
		}
	}
	b.mu.Unlock()
	for vm, m := range watched {
		now, err := m.demand(ctx)
		b.mu.Lock()
		if b.booting[vm] == m && (err != nil || m.up(now, time.Now())) {
			delete(b.booting, vm)
		}
		b.mu.Unlock()
	}
	b.mu.Lock()
	b.admit()
	b.mu.Unlock()
}

// up takes a measurement in, and reports whether the machine has done with booting.
func (m *booting) up(d hypervisor.Demand, now time.Time) bool {
	if interval := now.Sub(m.at).Seconds(); interval > 0 {
		m.wants = (d.Ran + d.Waited - m.last.Ran - m.last.Waited) / interval
		m.last, m.at = d, now
		m.quiet++
		if m.wants > bootQuiet {
			m.quiet = 0
		}
	}
	return m.quiet >= bootLooks || d.Ran > bootCPU || now.Sub(m.began) > bootWall
}
