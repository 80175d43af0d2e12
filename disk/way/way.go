// Package way puts repositories and local stores together to the way of a disk on one host: it implements disk.Way.
//
// This first version copies a base whole before a machine starts (mode OFFLINE of a non-persistent image), puts
// an overlay on top, and hands persistent images to their machine in place (mode NONE).
package way

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/localstore"
	"hayloft/disk/localstore/file"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/internal/command"
)

// Config of a host's way.
type Config struct {
	Root   string // LS_PATH, a directory, made when missing
	Max    int64  // LS_MAX in bytes; 0: the file system's size
	Runner command.Runner
	Log    *slog.Logger // nil: slog.Default
	GID    int          // group that may read bases: the hypervisor processes'
	Host   string       // name of this host in marks of ownership; "": the host name
}

// Way implements disk.Way.
type Way struct {
	config Config
	store  localstore.Store
	open   func(disk.Repository) (repository.Repository, error)

	mu      sync.Mutex
	locks   map[int]*machineLock
	flights map[flightKey]*flight
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
	if c.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		c.Host = name
	}
	store, err := file.Open(file.Config{Root: c.Root, Max: c.Max, GID: c.GID, Log: c.Log})
	if err != nil {
		return nil, err
	}
	return &Way{
		config: c, store: store, open: drivers.Open,
		locks: map[int]*machineLock{}, flights: map[flightKey]*flight{},
	}, nil
}

// machineLock serialises what is done for one machine; free has one token.
type machineLock struct {
	free  chan struct{}
	users int
}

// lock waits for its turn with a machine.
func (w *Way) lock(ctx context.Context, machine int) (unlock func(), err error) {
	w.mu.Lock()
	l := w.locks[machine]
	if l == nil {
		l = &machineLock{free: make(chan struct{}, 1)}
		l.free <- struct{}{}
		w.locks[machine] = l
	}
	l.users++
	w.mu.Unlock()
	leave := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(w.locks, machine)
		}
	}
	select {
	case <-l.free:
		return func() { l.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// Capacity implements disk.Way.
func (w *Way) Capacity(ctx context.Context) (disk.Capacity, error) { return w.store.Capacity(ctx) }

// Bases implements disk.Way.
func (w *Way) Bases(ctx context.Context) ([]disk.Base, error) {
	digests, err := w.store.Bases(ctx)
	list := make([]disk.Base, len(digests))
	for i, digest := range digests {
		list[i] = disk.Base{Digest: digest, Complete: true}
	}
	return list, err
}

// Settle implements disk.Way.
func (w *Way) Settle(context.Context, int, func(disk.Progress)) error { return nil }

// Caches implements disk.Way.
func (w *Way) Caches(context.Context, int) ([]disk.Cache, error) { return nil, nil }

// Prefetch implements disk.Way.
func (w *Way) Prefetch(ctx context.Context, i disk.Image, _ int64, report func(disk.Progress)) error {
	_, _, err := w.base(ctx, i, localstore.Data, func(done, total int64) {
		if report != nil {
			report(disk.Progress{Step: "prefetch " + i.Name, Done: done, Total: total})
		}
	})
	return err
}

// Machines implements disk.Way.
func (w *Way) Machines(ctx context.Context) ([]int, error) {
	list, err := w.store.Machines(ctx)
	if err != nil {
		return nil, err
	}
	ids := make([]int, len(list))
	for i, m := range list {
		ids[i] = m.ID
	}
	return ids, nil
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
