// Package fuse exports devices as files: one FUSE file system, one file per device. A file of immutable content is
// kept in the kernel's page cache, and once its content is whole, opens of it are handed through to the file that has
// it (FUSE passthrough), with no process in the data path. Other files are read and written directly.
//
// The process that serves files may open, read and write them itself, but not map them: a page fault that it would
// have to answer itself can stop it for ever.
package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/image"
)

// Config is what a file system is mounted with.
type Config struct {
	// Dir is the mount point, absolute; made when it is not there. What a dead process left mounted is cleared away.
	Dir string
	// State is a file, absolute, in a directory that is there, by which a process can go on with the file system of one
	// that died: then who has files open only waits, until Resume. "": they get errors. A process that is to have a
	// successor ends without Close.
	State string
	// Unattended is how long who has files open waits for a successor, and then gets errors. 0: 10 minutes.
	Unattended time.Duration
	Log        *slog.Logger
}

// FileSystem is a mounted file system. Safe for concurrent use.
type FileSystem struct {
	gofuse.RawFileSystem // what is not implemented

	dir    string
	log    *slog.Logger
	server *gofuse.Server
	served chan struct{} // closed when no request is served any more
	bound  bool          // dir was bound to itself, so that the mount stays in this namespace

	files   atomic.Pointer[table]
	mu      sync.Mutex // held to replace files
	lastID  uint64
	closed  bool
	closing sync.Once
	failed  error // of Close

	statePath  string
	unattended time.Duration
	lock       *os.File
	base       state // without the files
	taken      bool  // from a dead process, and not answering yet
	earlier    map[string]known
	holderGone <-chan struct{} // nil: the holder is not a child of this process
	leave      *os.File        // what the end of this process is known by to it
}

// table is never changed, only replaced.
type table struct {
	byName map[string]*file
	byNode map[uint64]*file
}

// Options describe one file.
type Options struct {
	UID, GID int
	// Mode are the permissions; 0: 0400 for a read-only device, 0600 for others.
	Mode os.FileMode
	// Modified is the time of last modification; zero: now.
	Modified time.Time
	// Passthrough gives a file of the operating system with all of the device's content, opened for reading, as soon
	// as there is one, and nil before. Only for read-only devices; may be nil. It is called when the file is looked up,
	// so it must be quick; what it gives is closed here.
	Passthrough func() *os.File
}

// Add makes a device a file and gives its path. The device is used until Remove returns. Errors: fault.Exists,
// fault.Invalid for the name, fault.WrongState after Close.
func (f *FileSystem) Add(name string, d export.Device, o Options) (string, error) {
	if err := image.CheckName(name); err != nil {
		return "", fmt.Errorf("fuse %s: %w", f.dir, err)
	}
	if o.Mode&^os.ModePerm != 0 {
		return "", fault.Errorf(fault.Invalid, "fuse %s: file %s: mode %v", f.dir, name, o.Mode)
	}
	path, err := f.add(name, d, o)
	if err == nil {
		f.save()
	}
	return path, err
}

func (f *FileSystem) add(name string, d export.Device, o Options) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.files.Load()
	switch {
	case f.closed:
		return "", fault.Errorf(fault.WrongState, "fuse %s: file %s: closed", f.dir, name)
	case old.byName[name] != nil:
		return "", fault.Errorf(fault.Exists, "fuse %s: file %s: is there already", f.dir, name)
	}
	added := f.again(name, d, o)
	if added == nil {
		f.lastID += 2
		added = newFile(f, f.lastID, name, d, o)
	}
	t := &table{byName: maps.Clone(old.byName), byNode: maps.Clone(old.byNode)}
	t.byName[name], t.byNode[added.node], t.byNode[added.through] = added, added, added
	f.files.Store(t)
	return filepath.Join(f.dir, name), nil
}

// again makes the file that a dead process had, when it is the same; else nil.
func (f *FileSystem) again(name string, d export.Device, o Options) *file {
	k, ok := f.earlier[name]
	delete(f.earlier, name)
	if !ok || k.Size != d.Size() || k.ReadOnly != d.ReadOnly() {
		return nil
	}
	o.Modified = time.Unix(0, k.Modified)
	added := newFile(f, k.Node, name, d, o)
	added.backing = k.Backing
	return added
}

// Remove ends a file: what is under way on it is ended and fails with ENODEV, as does all that comes later from who
// has it open. It does nothing when there is no such file. The device is not used any more when it returns.
func (f *FileSystem) Remove(name string) {
	f.mu.Lock()
	old := f.files.Load()
	gone := old.byName[name]
	if gone != nil {
		t := &table{byName: maps.Clone(old.byName), byNode: maps.Clone(old.byNode)}
		delete(t.byName, name)
		delete(t.byNode, gone.node)
		delete(t.byNode, gone.through)
		f.files.Store(t)
	}
	f.mu.Unlock()
	if gone != nil {
		gone.end()
		f.save()
	}
}

// Close removes all files and unmounts, also when files are open. It waits for at most a minute; fault.Busy when
// that was not enough.
func (f *FileSystem) Close() error {
	f.closing.Do(func() {
		f.mu.Lock()
		f.closed = true
		neverServed := f.taken
		old := f.files.Swap(&table{byName: map[string]*file{}, byNode: map[uint64]*file{}})
		f.mu.Unlock()
		for _, gone := range old.byName {
			gone.end()
		}
		err := detach(f.dir)
		if neverServed {
			f.serve() // to close what go-fuse has
		}
		select {
		case <-f.served:
		case <-time.After(closeLimit):
			err = errors.Join(err, fault.Errorf(fault.Busy, "requests are still under way after %v", closeLimit))
		}
		if f.bound {
			err = errors.Join(err, detach(f.dir))
		}
		f.endSurvival()
		if err != nil {
			f.failed = fmt.Errorf("fuse %s: %w", f.dir, err)
			return
		}
		f.log.Info("fuse unmounted", "dir", f.dir)
	})
	return f.failed
}

const (
	closeLimit        = time.Minute
	defaultUnattended = 10 * time.Minute
)

// Mount mounts an empty file system. Errors: fault.Permission when not root, fault.Busy when another process serves
// one at Dir, fault.WrongState when something else is mounted there, fault.Unsupported without FUSE.
func Mount(ctx context.Context, c Config) (*FileSystem, error) {
	if !filepath.IsAbs(c.Dir) {
		return nil, fault.Errorf(fault.Invalid, "fuse: mount point %q is not absolute", c.Dir)
	}
	if c.State != "" && !filepath.IsAbs(c.State) {
		return nil, fault.Errorf(fault.Invalid, "fuse %s: state file %q is not absolute", c.Dir, c.State)
	}
	f := &FileSystem{RawFileSystem: gofuse.NewDefaultRawFileSystem(), dir: filepath.Clean(c.Dir), statePath: c.State,
		unattended: c.Unattended, log: c.Log, served: make(chan struct{})}
	if f.unattended == 0 {
		f.unattended = defaultUnattended
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.files.Store(&table{byName: map[string]*file{}, byNode: map[uint64]*file{}})
	if err := f.mount(ctx); err != nil {
		return nil, fmt.Errorf("fuse %s: %w", f.dir, err)
	}
	f.log.Info("fuse mounted", "dir", f.dir)
	return f, nil
}
