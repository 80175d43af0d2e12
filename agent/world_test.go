package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
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
	watched int // how often somebody began to watch events

	undrained map[int]int64 // machine -> bytes that its repositories lack
	settle    func() error  // nil: works
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

type fakeDriver struct {
	*life
	name string
}

func (d fakeDriver) Name() string { return d.name }
func (d fakeDriver) Probe(context.Context) (hypervisor.Capabilities, error) {
	return hypervisor.Capabilities{Version: "fake", Accelerator: "none"}, nil
}

func (d fakeDriver) Start(ctx context.Context, m hypervisor.Machine) error {
	if fail := d.w.start; fail != nil {
		if err := fail(ctx, m); err != nil {
			return err
		}
	}
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if old := d.w.domains[m.ID]; old != nil && alive(*old) {
		return nil
	}
	if _, ok := d.w.disks[m.ID]; !ok {
		return fmt.Errorf("machine %d has no disks", m.ID)
	}
	for _, nic := range m.NICs {
		if !d.w.ports[nic.Port] {
			return fmt.Errorf("port %s is not plugged", nic.Port)
		}
	}
	what := "start"
	if m.Restore != "" {
		content, err := os.ReadFile(m.Restore)
		if err != nil {
			return err
		}
		if string(content) != d.w.disks[m.ID] {
			return fmt.Errorf("memory of %q does not fit disks of %q", content, d.w.disks[m.ID])
		}
		what = "restore"
	}
	d.w.did(m.ID, what)
	d.w.undrained[m.ID] = 3 << 20 // it writes at once, as machines do
	d.w.disks[m.ID] += "+" + what
	d.w.domains[m.ID] = &hypervisor.Domain{ID: m.ID, Status: hypervisor.Running, PID: 1}
	d.w.started = append(d.w.started, m)
	d.w.announce(m.ID)
	return nil
}

func (d fakeDriver) Shutdown(ctx context.Context, id int) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if domain := d.w.domains[id]; domain == nil {
		return fault.Errorf(fault.NotFound, "domain %d", id)
	} else if alive(*domain) && !d.w.deaf {
		d.w.did(id, "shutdown")
		d.w.endLocked(id, hypervisor.Off, "powered off")
	}
	return nil
}

func (d fakeDriver) Kill(ctx context.Context, id int) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if domain := d.w.domains[id]; domain != nil && alive(*domain) {
		d.w.did(id, "kill")
		d.w.endLocked(id, hypervisor.Crashed, "killed")
	}
	return nil
}

func (d fakeDriver) Reboot(ctx context.Context, id int, hard bool) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	d.w.did(id, fmt.Sprintf("reboot(hard=%t)", hard))
	return nil
}

func (d fakeDriver) Save(ctx context.Context, id int, path string) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if d.w.save != nil {
		if err := d.w.save(); err != nil {
			return err
		}
	}
	domain := d.w.domains[id]
	if domain == nil || !alive(*domain) {
		return fmt.Errorf("domain %d does not run", id)
	}
	if err := os.WriteFile(path, []byte(d.w.disks[id]), 0o600); err != nil {
		return err
	}
	d.w.did(id, "save")
	d.w.endLocked(id, hypervisor.Off, "saved")
	return nil
}

func (d fakeDriver) List(ctx context.Context) ([]hypervisor.Domain, error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if d.w.list != nil {
		if err := d.w.list(); err != nil {
			return nil, err
		}
	}
	var all []hypervisor.Domain
	for _, id := range slices.Sorted(maps.Keys(d.w.domains)) {
		all = append(all, *d.w.domains[id])
	}
	return all, nil
}

func (d fakeDriver) Remove(ctx context.Context, id int) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if domain := d.w.domains[id]; domain != nil && alive(*domain) {
		d.w.did(id, "kill")
	}
	delete(d.w.domains, id)
	return nil
}

func (d fakeDriver) Events(ctx context.Context) <-chan int {
	in, out := make(chan int, 100000), make(chan int)
	d.w.mu.Lock()
	d.w.events = append(d.w.events, in)
	d.w.watched++
	d.w.mu.Unlock()
	go func() {
		defer close(out)
		for {
			select {
			case id := <-in:
				select {
				case out <- id:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				d.w.mu.Lock()
				d.w.events = slices.DeleteFunc(d.w.events, func(c chan int) bool { return c == in })
				d.w.mu.Unlock()
				return
			}
		}
	}()
	return out
}

// fullDriver has the optional interfaces too.
type fullDriver struct{ fakeDriver }

func (d fullDriver) Freeze(ctx context.Context, id int, fn func() error) error { return fn() }
func (d fullDriver) Usage(_ context.Context, id int) (hypervisor.Usage, error) {
	return hypervisor.Usage{CPUSeconds: 1.5, MemoryBytes: 1 << 20}, nil
}

type fakeWay struct{ *life }

func (l fakeWay) Prepare(ctx context.Context, r disk.Request, report func(disk.Progress)) (disk.Prepared, error) {
	if fail := l.w.prepare; fail != nil {
		if err := fail(ctx, r); err != nil {
			return disk.Prepared{}, err
		}
	}
	leave, err := l.enter(ctx)
	if err != nil {
		return disk.Prepared{}, err
	}
	defer leave()
	if _, ok := l.w.disks[r.Machine]; !ok {
		l.w.did(r.Machine, "prepare")
		l.w.disks[r.Machine] = "new"
	}
	return l.prepared(r)
}

func (l fakeWay) prepared(r disk.Request) (disk.Prepared, error) {
	dir := filepath.Join(r.Dir, "disks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return disk.Prepared{}, err
	}
	p := disk.Prepared{RepositoryBytes: 100, GivenBytes: 1000}
	for _, d := range r.Disks {
		p.Devices = append(p.Devices, device.Device{Kind: device.File, Path: filepath.Join(dir, fmt.Sprint(d.ID)), Format: device.Raw})
	}
	for i, f := range r.Files {
		path := filepath.Join(dir, fmt.Sprint("file", i))
		if err := os.WriteFile(path, []byte(f.Name), 0o600); err != nil {
			return p, err
		}
		p.Files = append(p.Files, path)
	}
	return p, nil
}

func (l fakeWay) Remove(ctx context.Context, machine int, dir string) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if _, ok := l.w.disks[machine]; ok {
		if l.w.undrained[machine] > 0 {
			return fault.Errorf(fault.WrongState, "machine %d has undrained writes", machine)
		}
		l.w.did(machine, "remove")
		delete(l.w.disks, machine)
	}
	return os.RemoveAll(filepath.Join(dir, "disks"))
}

func (l fakeWay) SaveAs(ctx context.Context, machine int, _ string, spec disk.Spec, to disk.Repository, name string, _ func(disk.Progress)) (disk.Saved, error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return disk.Saved{}, err
	}
	defer leave()
	if _, ok := l.w.disks[machine]; !ok {
		return disk.Saved{}, fmt.Errorf("machine %d has no disks", machine)
	}
	l.w.did(machine, "saveas-"+name)
	return disk.Saved{Digest: "blake3:" + name, Size: 5, Format: "raw"}, nil
}

func (l fakeWay) Stash(ctx context.Context, machine int, dir string, extra []string, to disk.Repository) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	content, here := l.w.disks[machine]
	if !here {
		if l.w.stashes[machine] != nil {
			return nil
		}
		return fmt.Errorf("machine %d has no disks", machine)
	}
	if l.w.undrained[machine] > 0 {
		return fault.Errorf(fault.WrongState, "machine %d has undrained writes", machine)
	}
	stash := map[string]string{"disks": content}
	for _, path := range extra {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		stash[filepath.Base(path)] = string(content)
	}
	l.w.stashes[machine] = stash
	delete(l.w.disks, machine)
	for _, path := range extra {
		os.Remove(path)
	}
	l.w.did(machine, fmt.Sprintf("stash(%s)", strings.Join(slices.Sorted(maps.Keys(stash)), ",")))
	return nil
}

func (l fakeWay) Unstash(ctx context.Context, r disk.Request, from disk.Repository, report func(disk.Progress)) (disk.Prepared, error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return disk.Prepared{}, err
	}
	defer leave()
	stash := l.w.stashes[r.Machine]
	if stash == nil {
		return disk.Prepared{}, fault.Errorf(fault.NotFound, "machine %d has no stash", r.Machine)
	}
	for name, content := range stash {
		if name == "disks" {
			if l.w.disks[r.Machine] != content {
				l.w.did(r.Machine, "unstash")
			}
			l.w.disks[r.Machine] = content
		} else if err := os.WriteFile(filepath.Join(r.Dir, name), []byte(content), 0o600); err != nil {
			return disk.Prepared{}, err
		}
	}
	return l.prepared(r)
}

func (l fakeWay) DropStash(ctx context.Context, machine int, from disk.Repository) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if l.w.stashes[machine] == nil {
		return fault.Errorf(fault.NotFound, "machine %d has no stash", machine)
	}
	l.w.did(machine, "dropstash")
	delete(l.w.stashes, machine)
	return nil
}

func (l fakeWay) Resize(ctx context.Context, machine int, _ string, id int, size int64) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	l.w.did(machine, fmt.Sprintf("resize-%d-%d", id, size))
	return nil
}

func (l fakeWay) Capacity(context.Context) (disk.Capacity, error) {
	return disk.Capacity{Total: 100, Free: 50, Used: 50}, nil
}
func (l fakeWay) Bases(context.Context) ([]disk.Base, error) {
	return []disk.Base{{Digest: "blake3:base", Complete: true}}, nil
}
func (l fakeWay) Settle(ctx context.Context, machine int, _ bool, report func(disk.Progress)) error {
	l.w.mu.Lock()
	fail, left := l.w.settle, l.w.undrained[machine]
	l.w.mu.Unlock()
	if left > 0 {
		report(disk.Progress{Step: "disk 0", Done: 1, Total: left})
		if fail != nil {
			if err := fail(); err != nil {
				return err
			}
		}
	}
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if l.w.undrained[machine] > 0 {
		l.w.did(machine, "drain")
		delete(l.w.undrained, machine)
	}
	return nil
}

func (l fakeWay) Caches(_ context.Context, machine int) ([]disk.Cache, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return []disk.Cache{{Disk: 0, Mode: "BACK", Cached: 5, Total: 10, Undrained: l.w.undrained[machine]}}, nil
}

func (l fakeWay) Prefetch(ctx context.Context, i disk.Image, rate int64, report func(disk.Progress)) error {
	l.w.mu.Lock()
	fetching := l.w.fetching
	l.w.mu.Unlock()
	if fetching != nil {
		if err := fetching(ctx, i, report); err != nil {
			return err
		}
	}
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	report(disk.Progress{Done: 8, Total: 8})
	l.w.fetched = append(l.w.fetched, fmt.Sprintf("%s@%d", i.Name, rate))
	return nil
}

func (l fakeWay) Machines(context.Context) ([]int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return slices.Sorted(maps.Keys(l.w.disks)), nil
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
