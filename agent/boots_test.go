package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/hypervisor"
)

// guest is a simulated machine on simulated cores: it wants one core until it has had enough, then none.
type guest struct {
	began time.Time
	needs time.Duration // how long it is busy, waiting for cores included
}

func (g *guest) demand(context.Context) (hypervisor.Demand, error) {
	if g.began.IsZero() {
		return hypervisor.Demand{}, errors.New("not started")
	}
	return hypervisor.Demand{Ran: min(time.Since(g.began), g.needs).Seconds() / 2, Waited: min(time.Since(g.began), g.needs).Seconds() / 2}, nil
}

func TestBootsAreFewAtATimeAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBoots(4)
		var group sync.WaitGroup
		group.Go(func() { b.run(ctx) })
		var mu sync.Mutex
		var order []int64
		guests := map[int64]*guest{}
		busy, most := 0, 0
		for vm := range int64(40) {
			g := &guest{needs: 2 * time.Second}
			guests[vm] = g
			group.Go(func() {
				if err := b.enter(ctx, vm, g.demand); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, vm)
				busy++
				most = max(most, busy)
				g.began = time.Now()
				mu.Unlock()
				b.started(vm)
				time.Sleep(g.needs)
				mu.Lock()
				busy--
				mu.Unlock()
			})
			synctest.Wait()
		}
		begun := time.Now()
		for done := false; !done; {
			time.Sleep(100 * time.Millisecond)
			mu.Lock()
			done = len(order) == 40 && busy == 0
			mu.Unlock()
		}
		if most != 4 {
			t.Errorf("at most %d booted at a time, want 4", most)
		}
		for place, vm := range order { // those of one round are let in at the same moment
			if vm/4 != int64(place)/4 {
				t.Errorf("order %v", order)
				break
			}
		}
		// Ten rounds of two seconds, and the time it takes to see that each round is over.
		if took := time.Since(begun); took < 20*time.Second || took > 26*time.Second {
			t.Errorf("took %v", took)
		}
		cancel()
		group.Wait()
	})
}

func TestBootsThatIdleLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBoots(2)
		var group sync.WaitGroup
		group.Go(func() { b.run(ctx) })
		for vm := range int64(20) { // machines that wait for their disks all the time
			group.Go(func() {
				if err := b.enter(ctx, vm, func(context.Context) (hypervisor.Demand, error) { return hypervisor.Demand{}, nil }); err != nil {
					t.Error(err)
				}
				b.started(vm)
			})
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if len(b.queue) != 0 || len(b.booting) != 0 {
			t.Errorf("%d wait, %d boot", len(b.queue), len(b.booting))
		}
		cancel()
		group.Wait()
	})
}

func TestBootsThatNeverEndDoNotHoldOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBoots(1)
		var group sync.WaitGroup
		group.Go(func() { b.run(ctx) })
		for vm := range int64(3) {
			group.Go(func() {
				var began time.Time
				demand := func(context.Context) (hypervisor.Demand, error) {
					return hypervisor.Demand{Ran: time.Since(began).Seconds()}, nil
				}
				if err := b.enter(ctx, vm, demand); err != nil {
					t.Error(err)
				}
				began = time.Now()
				b.started(vm)
			})
		}
		time.Sleep(50 * time.Second) // each is forgotten after 15 s of processor time
		synctest.Wait()
		if len(b.queue) != 0 {
			t.Errorf("%d wait", len(b.queue))
		}
		cancel()
		group.Wait()
	})
}

func TestBootGivenUpLeavesItsPlace(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := newBoots(1)
	busy := func(context.Context) (hypervisor.Demand, error) { return hypervisor.Demand{}, nil }
	if err := b.enter(t.Context(), 1, busy); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error)
	go func() { waits <- b.enter(ctx, 2, busy) }()
	cancel()
	if err := <-waits; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	b.left(1)
	if err := b.enter(t.Context(), 3, busy); err != nil {
		t.Fatal(err)
	}
	if len(b.queue) != 0 || len(b.booting) != 1 {
		t.Errorf("%d wait, %d boot", len(b.queue), len(b.booting))
	}
}
