package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/hypervisor"
	"hayloft/network"
)

// world is a host as it outlives agents: domains, disks, ports, stashes, and what was done to machines.
type world struct {
	mu      sync.Mutex
	domains map[int]*hypervisor.Domain
	disks   map[int]string // machine -> what happened to its disks
	memory  map[string]string
	stashes map[int]map[string]string
	ports   map[string]bool
	bridges map[string]bool
	history map[int][]string
	events  []chan int

	undrained map[int]int64               // machine -> bytes that its repositories lack
	settle    func(context.Context) error // nil: works
	away      string                      // what caches say of their repository
	fetched   []string
	fetching  func(context.Context, disk.Image, func(disk.Progress)) error // nil: works at once

	prepare func(context.Context, disk.Request) error       // nil: works
	start   func(context.Context, hypervisor.Machine) error // nil: works
	save    func() error
	plug    func() error
	deaf    bool // guests do not answer Shutdown
	started []hypervisor.Machine
	list    func() error
	ensures int
}

func newWorld() *world {
	return &world{
		domains: map[int]*hypervisor.Domain{}, disks: map[int]string{}, memory: map[string]string{},
		stashes: map[int]map[string]string{}, ports: map[string]bool{}, bridges: map[string]bool{}, history: map[int][]string{}, undrained: map[int]int64{},
	}
}

func (w *world) did(id int, what string) { w.history[id] = append(w.history[id], what) }

// happened is what was effectively done to a machine; a reboot asked twice in a row counts once.
func (w *world) happened(id int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(slices.Compact(slices.Clone(w.history[id])), " ")
}

func (w *world) end(id int, status hypervisor.Status, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(id, status, reason)
}

func (w *world) endLocked(id int, status hypervisor.Status, reason string) {
	d := w.domains[id]
	d.Status, d.Reason, d.PID = status, reason, 0
	w.announce(id)
}

func (w *world) announce(id int) {
	for _, events := range w.events {
		select {
		case events <- id:
		default:
			panic("too many events")
		}
	}
}

// nothingLeft says what of a machine is still on the host.
func (w *world) nothingLeft() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.domains)+len(w.disks)+len(w.ports)+len(w.bridges)+len(w.undrained) > 0 {
		return fmt.Errorf("left: domains %v, disks %v, ports %v, bridges %v, undrained %v", w.domains, w.disks, w.ports, w.bridges, w.undrained)
	}
	return nil
}

// life is the drivers as one agent has them: dead drivers do nothing any more.
type life struct {
	w    *world
	dead atomic.Bool
}

var errDead = fmt.Errorf("the agent is dead")

func (l *life) enter(ctx context.Context) (func(), error) {
	l.w.mu.Lock()
	if l.dead.Load() {
		l.w.mu.Unlock()
		return nil, errDead
	}
	if err := ctx.Err(); err != nil {
		l.w.mu.Unlock()
		return nil, err
	}
	return l.w.mu.Unlock, nil
}

type fakeNetwork struct{ *life }

func (l fakeNetwork) Ensure(ctx context.Context, n network.Network) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	l.w.bridges[n.Bridge] = true
	l.w.ensures++
	return nil
}

func (l fakeNetwork) Release(ctx context.Context, n network.Network) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if len(l.w.ports) > 0 {
		return fault.Errorf(fault.Busy, "network %s has ports", n.Name)
	}
	delete(l.w.bridges, n.Bridge)
	return nil
}

func (l fakeNetwork) Plug(ctx context.Context, n network.Network, p network.Port) (*os.File, error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if l.w.plug != nil {
		if err := l.w.plug(); err != nil {
			return nil, err
		}
	}
	if !l.w.bridges[n.Bridge] {
		return nil, fmt.Errorf("no bridge %s", n.Bridge)
	}
	l.w.ports[p.Name] = true
	if p.Kind == network.Veth {
		return nil, nil
	}
	return os.Open(os.DevNull)
}

func (l fakeNetwork) Unplug(ctx context.Context, port string) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	delete(l.w.ports, port)
	return nil
}

func (l fakeNetwork) Ports(context.Context) ([]string, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return slices.Sorted(maps.Keys(l.w.ports)), nil
}

func (l fakeNetwork) Cleanup(context.Context) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	clear(l.w.bridges)
	return nil
}
