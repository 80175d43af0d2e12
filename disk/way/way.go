// Package way puts repositories, local stores and the data path together to the way of a disk on one host: it
// implements disk.Way. It keeps the books (space, records of machines, directories) and tells the data path (package
// blockd) what to bring here and what to export. A clone is an overlay whose header names the base's file; while the
// base is not whole, its machine gets the base by NBD instead. A persistent image is handed to its machine in place, or
// through a cache that the data path has.
package way

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/fastcopy"
	"hayloft/disk/kernelcache"
	"hayloft/disk/localstore"
	"hayloft/disk/localstore/file"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/internal/command"
	"hayloft/internal/waiting"
)

// Config of a host's way.
type Config struct {
	Root   string // LS_PATH, a directory, made when missing
	Max    int64  // LS_MAX in bytes; 0: the file system's size
	Runner command.Runner
	Log    *slog.Logger // nil: slog.Default
	GID    int          // group that may read bases: the hypervisor processes'
	// Open opens repositories, which are not closed here; nil: drivers.Open.
	Open func(disk.Repository) (repository.Repository, error)
	Host string // name of this host in marks of ownership; "": the host name
	// Data is the data path. nil: there is none, and disks that need one are fault.Unsupported.
	Data blockd.Service
	// Volumes has disks of the machines' own in volumes; nil: in files in their directories, counted by the store in Root.
	Volumes localstore.Volumes
	// Kernel has persistent images cached by the kernel, in modes AROUND, THRU and BACK as far as it has them; nil: by
	// the data path. KernelName is its LC_MAD.
	Kernel     kernelcache.Driver
	KernelName string
	// Copies is how many whole images are copied into volumes at a time, 0: 4; and CopiesPerRepository from one
	// repository, 0: 2.
	Copies, CopiesPerRepository int
	// Sockets is the directory of the data path's sockets, made when it is needed. "": below /run for root, else below
	// the directory of temporary files, told apart by Root.
	Sockets string
}

// Way implements disk.Way.
type Way struct {
	config Config
	store  localstore.Store
	open   func(disk.Repository) (repository.Repository, error)

	blocks  blocks
	leaving time.Duration // see leaveLimit
	asking  time.Duration // see askLimit
	bases   baseVolumes
	copies  *fastcopy.Limiter
	sockets sync.RWMutex // read-locked while their directory must stay
	swept   bool         // volumes, see there

	mu      sync.Mutex
	turns   map[string]*turn
	flights map[flightKey]*flight
	counted map[string]int64 // by digest: bytes that its base fetched, as far as somebody was told
	totals  map[string]int64 // by digest: bytes of data
}

var _ disk.Way = (*Way)(nil)

// New opens the local store under c.Root and removes what a crash left half-made there.
func New(c Config) (*Way, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Runner == nil {
		c.Runner = command.Exec{}
	}
	if c.Open == nil {
		c.Open = drivers.Open
	}
	if c.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		c.Host = name
	}
	if c.Sockets == "" {
		c.Sockets = defaultSockets(c.Root)
	}
	if longest := len(socketPath(c.Sockets, exportName(math.MaxInt32, 9999))); longest > maxSocketPath {
		return nil, fault.Errorf(fault.Invalid, "directory of sockets %s: paths in it would have %d bytes, %d are possible", c.Sockets, longest, maxSocketPath)
	}
	local := file.Config{Root: c.Root, Max: c.Max, GID: c.GID, Log: c.Log}
	if c.Data != nil {
		local.Evicting = c.Data.DropBase
	}
	store, err := file.Open(local)
	if err != nil {
		return nil, err
	}
	return &Way{
		config: c, store: store, open: c.Open,
		blocks: loops{}, leaving: leaveLimit, asking: askLimit, bases: baseVolumes{pins: map[string]int{}, used: map[string]time.Time{}}, copies: newLimiter(c.Copies, c.CopiesPerRepository),
		turns: map[string]*turn{}, flights: map[flightKey]*flight{}, counted: map[string]int64{}, totals: map[string]int64{},
	}, nil
}

// turn is for what is done for one machine or base, one after the other; free has one token.
type turn struct {
	free  chan struct{}
	users int
}

func machineTurn(id int) string { return fmt.Sprintf("machine %d", id) }

// lock waits for its turn with a machine or base.
func (w *Way) lock(ctx context.Context, what string) (unlock func(), err error) {
	w.mu.Lock()
	l := w.turns[what]
	if l == nil {
		l = &turn{free: make(chan struct{}, 1)}
		l.free <- struct{}{}
		w.turns[what] = l
	}
	l.users++
	w.mu.Unlock()
	leave := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(w.turns, what)
		}
	}
	ctx, done := waiting.On(ctx, "others who work on %s", what)
	defer done()
	select {
	case <-l.free:
		return func() { l.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// Machines implements disk.Way.
func (w *Way) Machines(ctx context.Context) ([]int, error) {
	list, err := w.store.Machines(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := w.machinesOfVolumes(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		ids = append(ids, m.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

func checkDir(machine int, dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
		return fault.Errorf(fault.Invalid, "machine %d: directory %q", machine, dir)
	}
	return nil
}

// owner of persistent images that this host's machine uses.
func (w *Way) owner(machine int) repository.Owner {
	return repository.Owner{Host: w.config.Host, Machine: machine}
}
