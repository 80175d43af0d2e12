package lvm

import (
	"context"
	"sync"

	"hayloft/disk/localstore/volumelock"
)

// gate is the lock of the group. Callers of this process that wait for it hand it on together with what is known of the
// group, so that it is read once for all of them, not once for each.
type gate struct {
	locks *volumelock.Locks
	turn  chan struct{} // held by the one inside
	queue chan struct{} // those who wait and the one inside; only its length counts

	// going keeps those apart who leave the queue: who is the last must know it.
	going sync.Mutex

	// Of the one inside:
	unlock func()
	known  *book
	passed int
}

const (
	maxWaiting = 1 << 16
	// maxPassed is how often the lock is handed on before other processes may have it.
	maxPassed = 32
)

func newGate(locks *volumelock.Locks) *gate {
	return &gate{locks: locks, turn: make(chan struct{}, 1), queue: make(chan struct{}, maxWaiting)}
}

// enter locks the group. leave is called once.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	select {
	case g.queue <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case g.turn <- struct{}{}:
	case <-ctx.Done():
		g.giveUp()
		return nil, ctx.Err()
	}
	if g.unlock == nil {
		if g.unlock, err = g.locks.Lock(ctx, theGroup); err != nil {
			<-g.turn
			<-g.queue
			return nil, err
		}
	}
	return g.leave, nil
}

func (g *gate) leave() {
	g.going.Lock()
	defer g.going.Unlock()
	<-g.queue
	g.passed++
	if len(g.queue) == 0 || g.passed >= maxPassed {
		g.release()
	}
	<-g.turn
}

// giveUp leaves the queue without having been inside. The one who left may have kept the lock for this caller.
func (g *gate) giveUp() {
	g.going.Lock()
	defer g.going.Unlock()
	<-g.queue
	select {
	case g.turn <- struct{}{}:
		if len(g.queue) == 0 && g.unlock != nil {
			g.release()
		}
		<-g.turn
	default: // who is inside sees to it
	}
}

func (g *gate) release() {
	g.unlock()
	g.unlock, g.known, g.passed = nil, nil, 0
}
