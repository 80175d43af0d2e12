package inventory

import (
	"context"
	"sync"
)

// Change says that an object is not what it was.
type Change struct {
	Kind    string
	ID      int
	Deleted bool
}

// Subscription collects changes for one reader, each object once however often it changed meanwhile.
type Subscription struct {
	inv     *Inventory
	wanted  func(Change) bool
	mu      sync.Mutex
	pending map[Change]bool
	order   []Change
	wake    chan struct{}
}

// Subscribe starts collecting the changes that wanted lets through (nil: all). wanted is called under the
// inventory's lock and must not call back. Close ends it.
func (inv *Inventory) Subscribe(wanted func(Change) bool) *Subscription {
	sub := &Subscription{inv: inv, wanted: wanted, pending: map[Change]bool{}, wake: make(chan struct{}, 1)}
	inv.mu.Lock()
	inv.subs[sub] = true
	inv.mu.Unlock()
	return sub
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.inv.mu.Lock()
	delete(s.inv.subs, s)
	s.inv.mu.Unlock()
}

func (s *Subscription) add(c Change) {
	if s.wanted != nil && !s.wanted(c) {
		return
	}
	s.mu.Lock()
	if !s.pending[c] {
		s.pending[c] = true
		s.order = append(s.order, c)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Wake is signalled when Take has something to give.
func (s *Subscription) Wake() <-chan struct{} { return s.wake }

// Take returns what has changed since the last call, in the order of first change; nil when nothing did.
func (s *Subscription) Take() []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := s.order
	s.order = nil
	clear(s.pending)
	return changes
}

// Wait blocks until there are changes, or ctx ends.
func (s *Subscription) Wait(ctx context.Context) ([]Change, error) {
	for {
		if changes := s.Take(); len(changes) > 0 {
			return changes, nil
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Touch tells subscribers to look at an object again although its record did not change.
func (inv *Inventory) Touch(c Change) {
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	for sub := range inv.subs {
		sub.add(c)
	}
}
