// Package lxc is the hypervisor driver of Linux containers, by lxc-start and a configuration that it
// generates for each container.
//
// A container is lxc's monitor process with the container's process 1 as its child. The monitor lives in a
// mount namespace of its own that holds the container's overlay and a view of cgroup2 alone, so lxc works
// on hosts with cgroup v1, v2 and both, the host's mount table stays as it is, and the kernel takes both
// away with the last process, however it ends. Nothing in it belongs to the driver's own process: a new
// driver over the same state directory finds the monitors again.
package lxc

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/hypervisor/internal/feed"
	"hayloft/hypervisor/internal/turn"
	"hayloft/internal/command"
)

// Config is what a driver needs.
type Config struct {
	StateDir   string // records of the containers, made when missing; one driver at a time
	CgroupRoot string // name of the control group above all containers; "" is "hayloft"
	Log        *slog.Logger
	Runner     command.Runner // nil is command.Exec
}

// Driver implements hypervisor.Driver, hypervisor.Consoler, hypervisor.Meter and hypervisor.Freezer.
type Driver struct {
	config   Config
	hostBoot string
	tree     *cgroup.Tree
	hidden   bool         // the host shows no cgroup2, only the containers' namespaces do
	clearing sync.Mutex   // one at a time removes the group above all containers,
	topUsers sync.RWMutex // and not while somebody, who has this for reading, makes groups in it
	turns    turn.Table
	feed     *feed.Feed

	mu         sync.Mutex
	containers map[int]record
	consoles   map[int]map[*console]bool

	life     context.Context // ends with Close
	stop     context.CancelFunc
	watchers sync.WaitGroup
}

// New makes a driver and adopts the containers in config.StateDir: those that run are watched again, for
// those that ended meanwhile it is found out how, and what a crash of the process left half-made is removed.
func New(config Config) (*Driver, error) {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Runner == nil {
		config.Runner = command.Exec{}
	}
	if config.CgroupRoot == "" {
		config.CgroupRoot = "hayloft"
	}
	if err := os.MkdirAll(config.StateDir, 0o700); err != nil {
		return nil, err
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	tree, err := cgroup.NewIn(layout, config.CgroupRoot)
	if err != nil {
		return nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	records, err := readRecords(config.StateDir)
	if err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.Background())
	d := &Driver{
		config: config, hostBoot: strings.TrimSpace(string(boot)), tree: tree, feed: feed.New(),
		hidden:     !slices.ContainsFunc(layout.Hierarchies, func(h cgroup.Hierarchy) bool { return h.V2 }),
		containers: make(map[int]record), consoles: make(map[int]map[*console]bool), life: life, stop: stop,
	}
	for _, r := range records {
		d.adopt(life, r)
	}
	return d, nil
}

// Close stops watching and ends attached consoles. Containers go on.
func (d *Driver) Close() error {
	d.stop()
	d.mu.Lock()
	attached := slices.Collect(maps.Keys(d.consoles))
	d.mu.Unlock()
	for _, id := range attached {
		d.hangUp(id)
	}
	d.watchers.Wait()
	return nil
}

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "lxc" }

// List implements hypervisor.Driver.
func (d *Driver) List(context.Context) ([]hypervisor.Domain, error) {
	d.mu.Lock()
	domains := make([]hypervisor.Domain, 0, len(d.containers))
	for _, r := range d.containers {
		domains = append(domains, r.domain())
	}
	d.mu.Unlock()
	slices.SortFunc(domains, func(a, b hypervisor.Domain) int { return a.ID - b.ID })
	return domains, nil
}

// Events implements hypervisor.Driver.
func (d *Driver) Events(ctx context.Context) <-chan int { return d.feed.Read(ctx) }

// Usage implements hypervisor.Meter, from the container's control groups.
func (d *Driver) Usage(_ context.Context, id int) (hypervisor.Usage, error) {
	r, err := d.runningNow(id)
	if err != nil {
		return hypervisor.Usage{}, err
	}
	g, err := d.tree.Open(containerName(id))
	if err != nil {
		return hypervisor.Usage{}, fmt.Errorf("domain %d: %w", r.Machine.ID, err)
	}
	u, err := g.Usage()
	if err != nil {
		return hypervisor.Usage{}, fmt.Errorf("domain %d: %w", id, err)
	}
	if u.MemoryBytes == 0 { // no memory controller
		pids, err := g.Procs()
		if err != nil {
			return hypervisor.Usage{}, fmt.Errorf("domain %d: %w", id, err)
		}
		for _, pid := range pids {
			u.MemoryBytes += resident(pid)
		}
	}
	return hypervisor.Usage{CPUSeconds: u.CPUSeconds, MemoryBytes: u.MemoryBytes}, nil
}

func (d *Driver) look(id int) (record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, ok := d.containers[id]
	if !ok {
		return record{}, fault.Errorf(fault.NotFound, "lxc: domain %d does not exist", id)
	}
	return r, nil
}

func (d *Driver) runningNow(id int) (record, error) {
	r, err := d.look(id)
	if err == nil && r.Phase != running {
		err = fault.Errorf(fault.WrongState, "lxc: domain %d is %s", id, r.Status)
	}
	return r, err
}

// keep stores a changed record, on disk first, and announces it. The caller has the turn.
func (d *Driver) keep(r record) error {
	if err := r.write(d.config.StateDir); err != nil {
		return fmt.Errorf("domain %d: %w", r.Machine.ID, err)
	}
	d.mu.Lock()
	d.containers[r.Machine.ID] = r
	d.mu.Unlock()
	d.feed.Add(r.Machine.ID)
	seen := r.domain()
	d.config.Log.Info("container", "vm", seen.ID, "status", seen.Status, "pid", seen.PID, "reason", seen.Reason)
	return nil
}

// cleanupLimit bounds what is done to take a container away once its operation was given up.
const cleanupLimit = time.Minute

func cleanupContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
}
