// Package dummy is the hypervisor driver of simulated machines: nothing runs, but Start, Shutdown, List
// and the rest behave as with a real hypervisor, with configurable delays and failures, for tests of
// the control plane at any size. The driver says of itself that it simulates (Probe's Version).
//
// A machine is one small file in the state directory and an entry in memory; one goroutine for all
// machines announces the ends that were planned (CRASH_AFTER, OFF_AFTER, SHUTDOWN_DELAY). Times are
// those of package time, so testing/synctest moves them. Simulated machines have no process: PID is 0.
package dummy

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/internal/feed"
	"hayloft/hypervisor/internal/turn"
)

// Config is what a driver needs.
type Config struct {
	StateDir string    // directory of the simulated machines, made when missing; one driver at a time. "" keeps them in memory, for as long as the driver
	Defaults Behaviour // of machines whose Simulated does not say otherwise
	Log      *slog.Logger
}

// Driver implements hypervisor.Driver, hypervisor.Consoler, hypervisor.Meter and hypervisor.Freezer.
type Driver struct {
	config   Config
	hostBoot string
	turns    turn.Table
	feed     *feed.Feed

	mu       sync.Mutex
	machines map[int]record
	attempts map[int]int // Starts so far by this driver, kept over Remove
	consoles map[int]map[*console]bool
	ends     endHeap

	alarm    chan struct{} // a nearer end was planned
	closing  chan struct{}
	finished chan struct{}
	once     sync.Once
}

// New makes a driver over the machines in config.StateDir, which go on as they were.
func New(config Config) (*Driver, error) {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	machines := make(map[int]record)
	if config.StateDir != "" {
		if err := os.MkdirAll(config.StateDir, 0o700); err != nil {
			return nil, err
		}
		var err error
		if machines, err = readRecords(config.StateDir); err != nil {
			return nil, err
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	d := &Driver{
		config: config, hostBoot: strings.TrimSpace(string(boot)), feed: feed.New(),
		machines: machines, attempts: make(map[int]int), consoles: make(map[int]map[*console]bool),
		alarm: make(chan struct{}, 1), closing: make(chan struct{}), finished: make(chan struct{}),
	}
	for id, r := range machines {
		if r.Status == hypervisor.Running && !r.Ends.IsZero() {
			d.ends.plan(r.Ends, id)
		}
	}
	go d.announceEnds()
	return d, nil
}

// Close stops watching; the simulated machines go on and a new driver adopts them.
func (d *Driver) Close() error {
	d.once.Do(func() { close(d.closing) })
	<-d.finished
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.consoles {
		d.hangUp(id)
	}
	return nil
}

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "dummy" }

// Probe implements hypervisor.Driver.
func (d *Driver) Probe(context.Context) (hypervisor.Capabilities, error) {
	return hypervisor.Capabilities{Version: "dummy (simulated machines)", Notes: []string{"machines of this driver are simulated: nothing runs"}}, nil
}

// List implements hypervisor.Driver.
func (d *Driver) List(context.Context) ([]hypervisor.Domain, error) {
	now := time.Now()
	d.mu.Lock()
	domains := make([]hypervisor.Domain, 0, len(d.machines))
	for _, r := range d.machines {
		r = r.at(now, d.hostBoot)
		domains = append(domains, hypervisor.Domain{ID: r.ID, Status: r.Status, Started: r.Started, Reason: r.Reason})
	}
	d.mu.Unlock()
	slices.SortFunc(domains, func(a, b hypervisor.Domain) int { return a.ID - b.ID })
	return domains, nil
}

// Events implements hypervisor.Driver.
func (d *Driver) Events(ctx context.Context) <-chan int { return d.feed.Read(ctx) }

// Usage implements hypervisor.Meter: CPU_LOAD since the start, and all of the memory.
func (d *Driver) Usage(_ context.Context, id int) (hypervisor.Usage, error) {
	r, err := d.running(id)
	if err != nil {
		return hypervisor.Usage{}, err
	}
	return hypervisor.Usage{CPUSeconds: r.cpuSeconds(time.Now()), MemoryBytes: int64(r.MemoryMB) << 20}, nil
}

// look returns the machine as it is now.
func (d *Driver) look(id int) (record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, ok := d.machines[id]
	if !ok {
		return record{}, fault.Errorf(fault.NotFound, "dummy: domain %d does not exist", id)
	}
	return r.at(time.Now(), d.hostBoot), nil
}

func (d *Driver) running(id int) (record, error) {
	r, err := d.look(id)
	if err == nil && r.Status != hypervisor.Running {
		err = fault.Errorf(fault.WrongState, "dummy: domain %d is %s", id, r.Status)
	}
	return r, err
}

// keep stores a changed record, on disk first, and announces the change. The caller has the turn.
func (d *Driver) keep(r record) error {
	if d.config.StateDir != "" {
		if err := r.write(d.config.StateDir); err != nil {
			return err
		}
	}
	d.mu.Lock()
	d.machines[r.ID] = r
	if !r.Ends.IsZero() {
		d.ends.plan(r.Ends, r.ID)
	}
	if r.Status != hypervisor.Running {
		d.hangUp(r.ID)
	}
	d.mu.Unlock()
	select {
	case d.alarm <- struct{}{}:
	default:
	}
	d.feed.Add(r.ID)
	d.config.Log.Info("simulated machine", "vm", r.ID, "status", r.Status, "reason", r.Reason)
	return nil
}
