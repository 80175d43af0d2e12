package agent

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/hypervisor"
	"hayloft/hypervisor/dummy"
	"hayloft/wire"
)

// gatedDummy is the dummy driver as one agent has it; what starts effectively is written down.
type gatedDummy struct {
	*dummy.Driver
	life *life
}

func (d gatedDummy) Start(ctx context.Context, m hypervisor.Machine) error {
	leave, err := d.life.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	domains, err := d.Driver.List(ctx)
	if err != nil {
		return err
	}
	for _, domain := range domains {
		if domain.ID == m.ID && alive(domain) {
			return nil
		}
	}
	d.life.w.did(m.ID, "start")
	return d.Driver.Start(ctx, m)
}

func (d gatedDummy) Kill(ctx context.Context, id int) error {
	return d.pass(ctx, func() error { return d.Driver.Kill(ctx, id) })
}

func (d gatedDummy) Remove(ctx context.Context, id int) error {
	return d.pass(ctx, func() error { return d.Driver.Remove(ctx, id) })
}

func (d gatedDummy) pass(ctx context.Context, call func() error) error {
	leave, err := d.life.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return call()
}

// TestKilledDeployment deploys forty simulated machines with an agent that is killed again and again.
func TestKilledDeployment(t *testing.T) {
	const machines = 40
	b := newBench(t)
	b.cfg.Starts, b.cfg.Prepares = 8, 4
	dummies := filepath.Join(t.TempDir(), "dummy")
	var driver *dummy.Driver
	begin := func() {
		var err error
		if driver, err = dummy.New(dummy.Config{StateDir: dummies}); err != nil {
			t.Fatal(err)
		}
		cfg := b.config()
		cfg.Hypervisors = map[string]hypervisor.Driver{"dummy": gatedDummy{driver, b.life}}
		a, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		a.pace, a.hook, a.noSync = b.pace, b.hook, true
		ctx, cancel := context.WithCancel(context.Background())
		if err := a.open(ctx); err != nil {
			t.Fatal(err)
		}
		b.agent, b.end = a, cancel
	}
	end := func() {
		b.stop()
		if err := driver.Close(); err != nil {
			t.Error(err)
		}
	}
	all := func(epoch uint64, goal wire.Goal) (assignments []*wire.Assignment) {
		for vm := range int64(machines) {
			assignments = append(assignments, assignment(vm, epoch, goal, hard, func(a *wire.Assignment) { a.Machine.Hypervisor = "dummy" }))
		}
		return assignments
	}
	for epoch, goal := range []wire.Goal{goalRunning, goalGone} {
		orders := all(uint64(epoch+1), goal)
		for range 12 {
			var left atomic.Int64
			left.Store(rand.Int64N(8*machines) + 1)
			killed := make(chan struct{})
			ready := make(chan struct{})
			b.hook = func(int64, string) {
				<-ready
				if left.Add(-1) == 0 {
					b.kill()
					close(killed)
				}
			}
			begin()
			close(ready)
			if b.agent.accept(&wire.Order{Full: true, Assignments: orders}) == nil { // else it was killed before
				select {
				case <-killed:
				case <-time.After(50 * time.Millisecond): // all is done
				}
			}
			end()
		}
		b.hook = nil
		begin()
		b.order(orders...)
		for vm := range int64(machines) {
			b.until(vm, uint64(epoch+1), map[wire.Goal]wire.Phase{goalRunning: wire.Phase_PHASE_RUNNING, goalGone: wire.Phase_PHASE_GONE}[goal])
		}
		b.idle()
		end()
	}
	for vm := range machines {
		if got := b.w.happened(vm); got != "prepare start remove" {
			t.Errorf("machine %d: %s", vm, got)
		}
	}
	if err := b.w.nothingLeft(); err != nil {
		t.Error(err)
	}
	if files, _ := filepath.Glob(filepath.Join(dummies, "*")); len(files) > 0 {
		t.Errorf("simulated machines left: %v", files)
	}
}

// TestIdleMachinesAreCheap: thousands of running machines take no goroutine and little memory.
func TestIdleMachinesAreCheap(t *testing.T) {
	const machines = 500
	b := newBench(t)
	b.begin()
	b.idle()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	orders := make([]*wire.Assignment, machines)
	for vm := range orders {
		orders[vm] = assignment(int64(vm), 1, goalRunning, func(a *wire.Assignment) {
			a.Machine.Context, a.Machine.ContextImages = nil, nil
		})
	}
	b.order(orders...)
	for vm := range orders {
		b.until(int64(vm), 1, wire.Phase_PHASE_RUNNING)
	}
	b.idle()
	b.w.started, orders = nil, nil
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if runtime.NumGoroutine() <= goroutines+3 { // some begin late
			break
		}
		time.Sleep(time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > goroutines+3 {
		t.Errorf("%d goroutines, %d before", now, goroutines)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int64(after.HeapAlloc-before.HeapAlloc) / machines
	t.Logf("%d bytes of heap a machine, the test's world included", each)
	if each > 20<<10 {
		t.Errorf("%d bytes of heap a machine", each)
	}
}
