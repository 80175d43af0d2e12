package fleet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"hayloft/cloud"
	"hayloft/server/api"
)

// Machine is a machine of the fleet, as last seen.
type Machine struct {
	api.VM
	RunningSeen time.Time // when the watch said RUNNING; zero before
	Answered    time.Time // over SSH, as itself; zero before
	Err         error     // why it will not
}

// Container tells containers from virtual machines.
func (m *Machine) Container() bool { return m.Hypervisor == "lxc" }

// Done says that nothing more is waited for.
func (m *Machine) Done() bool { return !m.Answered.IsZero() || m.Err != nil }

// following is one call of Follow.
type following struct {
	fleet    *Fleet
	onChange func([]Machine)
	group    sync.WaitGroup

	mu       sync.Mutex
	machines []Machine
	probing  map[int]bool
	changed  chan struct{}
}

// Follow watches machines until each has answered over SSH or failed, or ctx ends, and returns them in the order
// of ids. onChange, which may be nil, sees them at each change and each second, one call at a time.
func (f *Fleet) Follow(ctx context.Context, ids []int, onChange func([]Machine)) ([]Machine, error) {
	w := &following{fleet: f, onChange: onChange, probing: map[int]bool{}, changed: make(chan struct{}, 1)}
	for _, id := range ids {
		m := Machine{}
		m.ID = id
		w.machines = append(w.machines, m)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer w.group.Wait()
	defer cancel()
	watched := make(chan error, 1)
	w.group.Go(func() {
		_, err := f.Client.WaitVMs(ctx, ids, w.settled, func(vms []api.VM) { w.see(ctx, vms) })
		watched <- err
	})
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-w.changed:
		case <-tick.C:
		case err := <-watched:
			// Machines that failed are told apart below; they need not end it for the others.
			if err != nil && ctx.Err() == nil && !w.anyFailed() {
				return w.copy(), err
			}
			watched = nil
		case <-ctx.Done():
			return w.giveUp(ctx), nil
		}
		machines := w.copy()
		if onChange != nil {
			onChange(machines)
		}
		if !slices.ContainsFunc(machines, unfinished) {
			return machines, nil
		}
	}
}

// unfinished machines have something to come: an answer, or the moments of their stages.
func unfinished(m Machine) bool { return !m.Done() || m.Err == nil && m.Timing.BootEnd == 0 }

// settled ends the watch over a machine that runs and has all its moments, or has failed.
func (w *following) settled(vm api.VM) (bool, error) {
	if err := failure(vm); err != nil {
		return true, err
	}
	return vm.LCM == cloud.LCMRunning && vm.Timing.BootEnd != 0, nil
}

// failure is why a machine will not come up.
func failure(vm api.VM) error {
	switch vm.LCM {
	case cloud.LCMPrologFailure, cloud.LCMBootFailure, cloud.LCMUnknown:
		return fmt.Errorf("%s is in %s: %s", vm.Name, vm.StateName, vm.Error)
	}
	switch vm.State {
	case cloud.StateDone, cloud.StatePoweroff, cloud.StateCloningFailure:
		return fmt.Errorf("%s is in %s: %s", vm.Name, vm.StateName, vm.Error)
	}
	return nil
}

func (w *following) see(ctx context.Context, vms []api.VM) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, vm := range vms {
		m := &w.machines[i]
		m.VM = vm
		m.NICs = slices.Clone(vm.NICs)
		if err := failure(vm); err != nil && m.Answered.IsZero() {
			m.Err = err
		}
		if vm.LCM == cloud.LCMRunning && !w.probing[vm.ID] && len(vm.NICs) > 0 {
			w.probing[vm.ID] = true
			m.RunningSeen = time.Now()
			nic := vm.NICs[0]
			target := Target{Name: vm.Name, IP: nic.IP, MAC: nic.MAC, Bridge: bridgeName, Address: vm.Hypervisor == "lxc"}
			w.group.Go(func() { w.probe(ctx, i, target) })
		}
	}
	w.wake()
}

func (w *following) probe(ctx context.Context, i int, t Target) {
	at, err := w.fleet.Prober.Answers(ctx, t)
	w.mu.Lock()
	defer w.mu.Unlock()
	m := &w.machines[i]
	if err == nil {
		m.Answered, m.Err = at, nil
	} else if m.Err == nil {
		m.Err = fmt.Errorf("%s: %w", t.Name, err)
	}
	w.wake()
}

func (w *following) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *following) copy() []Machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.machines)
}

func (w *following) anyFailed() bool {
	return slices.ContainsFunc(w.copy(), func(m Machine) bool { return m.Err != nil })
}

// giveUp ends with what there is; probes have the time to say what they saw last.
func (w *following) giveUp(ctx context.Context) []Machine {
	w.group.Wait()
	machines := w.copy()
	for i := range machines {
		if m := &machines[i]; !m.Done() {
			m.Err = fmt.Errorf("%s (%d) is in %s: %w", m.Name, m.ID, m.StateName, ctx.Err())
			if m.SchedMessage != "" {
				m.Err = fmt.Errorf("%w: %s", m.Err, m.SchedMessage)
			}
		}
	}
	return machines
}
