package base

import (
	"context"
	"sync"
)

// class is how urgent a fetch is.
type class int

const (
	demand  class = iota // a reader waits for it
	ahead                // a reader will probably want it next
	preload              // somebody may want it some time
	classes
)

// How many fetches there are at once, each of up to maxRun bytes.
const (
	maxDemand      = 16
	maxAhead       = 4
	maxPreload     = 8
	maxPreloadBusy = 2 // while demand is being fetched
)

// gate lets fetches through, demand first: nothing else starts while demand waits.
type gate struct {
	mu              sync.Mutex
	active, waiting [classes]int
	changed         chan struct{} // closed when it may be open for somebody
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

func (g *gate) open(c class) bool {
	switch c {
	case demand:
		return g.active[demand] < maxDemand
	case ahead:
		return g.waiting[demand] == 0 && g.active[ahead] < maxAhead
	}
	limit := maxPreload
	if g.active[demand] > 0 {
		limit = maxPreloadBusy
	}
	return g.waiting[demand] == 0 && g.active[preload] < limit
}

// enter waits until a fetch of class c may start.
func (g *gate) enter(ctx context.Context, c class) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting[c]++
	for !g.open(c) {
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
			g.mu.Lock()
		case <-ctx.Done():
			g.mu.Lock()
			g.waiting[c]--
			g.wake()
			return context.Cause(ctx)
		}
	}
	g.waiting[c]--
	g.active[c]++
	g.wake()
	return nil
}

func (g *gate) leave(c class) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active[c]--
	g.wake()
}

func (g *gate) wake() {
	for _, n := range g.waiting {
		if n > 0 {
			close(g.changed)
			g.changed = make(chan struct{})
			return
		}
	}
}
