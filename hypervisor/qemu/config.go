// Package qemu runs machines as QEMU processes, one a machine, driven over QMP. The processes outlive the
// driver: a new driver over the same state directory adopts what runs and learns how the rest ended.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/hypervisor/internal/feed"
	"hayloft/hypervisor/internal/turn"
	"hayloft/hypervisor/qemu/tsc"
)

// Config is what a driver needs to know. Only StateDir has no default.
type Config struct {
	StateDir     string        // where the driver keeps one small file per domain; may be the parent of the machines' directories
	Binary       string        // name or path of QEMU; "" is qemu-system-x86_64
	Accel        string        // kvm or tcg; "" tries kvm with a real guest and falls back to tcg
	CgroupRoot   string        // root of the machines' control groups, e.g. "hayloft-one"; "" for none
	TBSizeMB     int           // tcg's translation cache for each machine, MiB; 0 is 32
	NBDReconnect time.Duration // how long a machine's I/O waits for an NBD server that is away, before it fails; 0 is a day
	StartLimit   time.Duration // bound on Start without Restore; 0 is one minute
	UID, GID     int           // whom machines without ids of their own run as; 0 is 65534 (nobody). Without root all run as the caller
	Log          *slog.Logger  // nil is slog.Default()
}

func (c *Config) fill() error {
	if c.StateDir == "" {
		return fault.Errorf(fault.Invalid, "qemu driver: no state directory")
	}
	if c.Accel != "" && c.Accel != "kvm" && c.Accel != "tcg" {
		return fault.Errorf(fault.Invalid, "qemu driver: accelerator %q is neither kvm nor tcg", c.Accel)
	}
	if c.Binary == "" {
		c.Binary = "qemu-system-x86_64"
	}
	if c.TBSizeMB == 0 {
		c.TBSizeMB = 32
	}
	if c.NBDReconnect == 0 {
		c.NBDReconnect = 24 * time.Hour
	}
	if c.StartLimit == 0 {
		c.StartLimit = time.Minute
	}
	if c.UID == 0 {
		c.UID = 65534
	}
	if c.GID == 0 {
		c.GID = 65534
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Driver implements hypervisor.Driver, Consoler, Meter, Freezer and Snapshotter with QEMU.
type Driver struct {
	config Config
	binary string // absolute path
	groups *cgroup.Tree
	turns  turn.Table
	events *feed.Feed
	log    *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	probing sync.Mutex // one probe at a time
	host    *host      // guarded by probing

	tsc func() uint64 // rate of the time stamp counter in kHz, measured once; 0 when there is none

	mu      sync.Mutex
	domains map[int]*domain
}

var (
	_ hypervisor.Driver   = (*Driver)(nil)
	_ hypervisor.Consoler = (*Driver)(nil)
	_ hypervisor.Meter    = (*Driver)(nil)
	_ hypervisor.Freezer  = (*Driver)(nil)

	_ hypervisor.Snapshotter = (*Driver)(nil)
)

// New makes the driver and adopts every domain recorded in the state directory, which it makes when it is
// missing. fault.Unsupported when QEMU is not installed. The caller calls Close.
func New(config Config) (*Driver, error) {
	if err := config.fill(); err != nil {
		return nil, err
	}
	binary, err := exec.LookPath(config.Binary)
	if err != nil {
		return nil, fault.Errorf(fault.Unsupported, "qemu driver: program %s is not installed", config.Binary)
	}
	if err := os.MkdirAll(config.StateDir, 0o711); err != nil {
		return nil, fmt.Errorf("qemu driver: %w", err)
	}
	d := &Driver{config: config, binary: binary, events: feed.New(), log: config.Log, domains: map[int]*domain{},
		tsc: sync.OnceValue(func() uint64 {
			kHz, err := tsc.KHz()
			if err != nil {
				return 0
			}
			return kHz
		})}
	if config.CgroupRoot != "" {
		if d.groups, err = cgroup.New(config.CgroupRoot); err != nil {
			return nil, err
		}
		if !d.groups.Available() {
			d.groups = nil
		}
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	if err := d.adoptAll(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.wg.Go(d.tend)
	return d, nil
}

// Close stops watching and leaves the machines running.
func (d *Driver) Close() error {
	d.cancel()
	d.mu.Lock()
	for _, dom := range d.domains {
		dom.letGo()
	}
	d.mu.Unlock()
	d.wg.Wait()
	return nil
}

// Name is "qemu".
func (d *Driver) Name() string { return "qemu" }

// Events implements hypervisor.Driver.
func (d *Driver) Events(ctx context.Context) <-chan int { return d.events.Read(ctx) }
