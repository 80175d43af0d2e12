// Package filevolumes is the local store of volumes as raw files in a directory (LS_MAD=file). Below LS_PATH:
//
//	volumes/NAME/data     the volume's bytes; sparse, unless the layout is thick
//	volumes/NAME/volume   the mark that says whose it is, as JSON
//	volumes/.lock         locks of volumes, by name, among the processes of the host
//	volumes/.making-NAME  on its way to NAME; what a crash leaves goes when the store is opened, or NAME is provisioned
//	volumes/.gone-NAME    on its way out
//
// What has a volume's name without a mark of this instance is somebody else's, and never touched. Files are counted whole,
// and what they may still grow to is kept free of the file system.
package filevolumes

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/disk/localstore/volumelock"
)

// Config of a Store.
type Config struct {
	Root     string            // LS_PATH, absolute; made when missing
	Layout   localstore.Layout // "": Thin
	Max      int64             // LS_MAX in bytes, 0: none
	Instance string            // whose volumes these are; "": hayloft
	Log      *slog.Logger
	// Others tells what else is counted against LS_MAX, and what of that is yet to be written to the file system, in bytes.
	// May be nil.
	Others func(ctx context.Context) (counted, owed int64, err error)
	// Statfs asks the file system for its space; nil: the kernel.
	Statfs func(path string, st *unix.Statfs_t) error
}

// Store implements localstore.Volumes.
type Store struct {
	Config
	dir      string
	locks    *volumelock.Locks
	patience time.Duration // see openTime
}

var _ localstore.Volumes = (*Store)(nil)

const (
	volumesDir  = "volumes"
	dataFile    = "data"
	markFile    = "volume"
	makingStart = ".making-"
	goneStart   = ".gone-"
	// theSpace is the lock under which space is counted and taken: no volume's name.
	theSpace = ""
	sector   = 512
)

// mark is the content of a volume's mark.
type mark struct {
	Instance string `json:"instance"`
	UID      int    `json:"uid"`
	GID      int    `json:"gid"`
	Raw      bool   `json:"raw,omitempty"`
	ID       string `json:"id"`           // of this volume, whatever its name
	Of       string `json:"of,omitempty"` // of a snapshot: the ID of the other
}

// Open opens the store, and removes what dead makers left half-made.
func Open(ctx context.Context, c Config) (*Store, error) {
	if !filepath.IsAbs(c.Root) {
		return nil, fault.Errorf(fault.Invalid, "local store %q: path is not absolute", c.Root)
	}
	if c.Max < 0 {
		return nil, fault.Errorf(fault.Invalid, "local store %s: LS_MAX of %d bytes", c.Root, c.Max)
	}
	switch c.Layout {
	case "":
		c.Layout = localstore.Thin
	case localstore.Thin, localstore.Thick:
	default:
		return nil, fault.Errorf(fault.Unsupported, "local store %s: layout %q", c.Root, c.Layout)
	}
	if c.Instance == "" {
		c.Instance = "hayloft"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Statfs == nil {
		c.Statfs = unix.Statfs
	}
	s := &Store{Config: c, dir: filepath.Join(c.Root, volumesDir), patience: openTime}
	// Hypervisors pass through it, and read nothing but what is theirs.
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return nil, s.errorf(err)
	}
	var err error
	if s.locks, err = volumelock.New(filepath.Join(s.dir, ".lock")); err != nil {
		return nil, s.errorf(err)
	}
	return s, s.sweep()
}

func (s *Store) errorf(err error) error {
	return fault.Errorf(fault.ClassOf(err), "local store %s: %w", s.Root, err)
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) data(name string) string { return filepath.Join(s.dir, name, dataFile) }

// sweep removes what is half-made or half-gone, and nobody is at work on.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return s.errorf(err)
	}
	for _, e := range entries {
		name, making := strings.CutPrefix(e.Name(), makingStart)
		gone := false
		if !making {
			name, gone = strings.CutPrefix(e.Name(), goneStart)
		}
		if !making && !gone {
			continue
		}
		unlock, free, err := s.locks.TryLock(name)
		if err != nil {
			return s.errorf(err)
		}
		if !free {
			continue
		}
		s.Log.Info("remove what a crash left of a volume", "volume", name, "store", s.Root)
		err = os.RemoveAll(s.path(e.Name()))
		unlock()
		if err != nil {
			return s.errorf(err)
		}
	}
	return nil
}

// entry is one volume of ours.
type entry struct {
	mark
	name  string
	size  int64
	taken int64
}

// find gives a volume, nil when there is none; fault.Busy when its name is somebody else's.
func (s *Store) find(name string) (*entry, error) {
	if _, err := os.Lstat(s.path(name)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	e := entry{name: name}
	text, err := os.ReadFile(filepath.Join(s.path(name), markFile))
	if err == nil {
		err = json.Unmarshal(text, &e.mark)
	}
	if err != nil || e.Instance != s.Instance {
		return nil, fault.Errorf(fault.Busy, "volume %s: %s is not ours: it has no mark of instance %s", name, s.path(name), s.Instance)
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.data(name), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: s.data(name), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fault.Errorf(fault.Busy, "volume %s: %s is no file", name, s.data(name))
	}
	e.size, e.taken = st.Size, st.Blocks*sector
	return &e, nil
}

// all are the volumes of ours, by name.
func (s *Store) all() ([]entry, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, d := range entries {
		if localstore.CheckVolumeName(d.Name()) != nil {
			continue
		}
		e, err := s.find(d.Name())
		if fault.Is(err, fault.Busy) || fault.Is(err, fault.NotFound) {
			continue // somebody else's, or gone since
		}
		if err != nil {
			return nil, err
		}
		if e != nil {
			all = append(all, *e)
		}
	}
	return all, nil
}

func (s *Store) volume(e entry) localstore.Volume {
	return localstore.Volume{Name: e.name, Path: s.data(e.name), Size: e.size, Taken: e.taken, Raw: e.Raw}
}
