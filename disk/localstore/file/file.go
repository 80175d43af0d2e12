// Package file is the local store in a directory.
//
//	base/HEX/data, index, complete    a disk's or file's bytes, its chunk index, and the mark that both are whole
//	base/HEX/data, index, partial     the same on its way here, filled by package cache, and what it is counted for
//	base/HEX/tree/root, tree.complete an archive unpacked, and its mark
//	machine/ID.json                   what a machine has here
//
// What is being built has ".part-" in its name and is locked by its builder; what is neither locked nor marked is
// what a crash left, and goes when the store is opened.
package file

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/image"
	"hayloft/internal/durable"
)

// Config of a Store.
type Config struct {
	Root string // LS_PATH, absolute; made when missing
	Max  int64  // LS_MAX in bytes, 0: none
	GID  int    // group that may read bases of kind Data
	Log  *slog.Logger
	// Evicting is asked before a Data base goes: whoever has it open lets go of it, or says why not, and then it
	// stays. May be nil. It must not call the store.
	Evicting func(ctx context.Context, digest string) error
	// Statfs asks the file system for its space; nil: the kernel.
	Statfs func(path string, st *unix.Statfs_t) error
}

// Store implements localstore.Store.
type Store struct {
	Config

	mu       sync.Mutex
	reserved usage
	bases    map[baseKey]*base
	pins     map[string]int
	machines map[int]localstore.Machine
	evicting map[string]chan struct{} // digests of Data bases that Evicting is asked about; closed when that ended
}

var _ localstore.Store = (*Store)(nil)

type baseKey struct {
	digest string
	kind   localstore.Kind
}

type base struct {
	bytes   int64 // that it takes up; a partial one: may
	used    time.Time
	partial bool
}

// Open opens the store and removes what a crash left half-made.
func Open(c Config) (*Store, error) {
	if !filepath.IsAbs(c.Root) {
		return nil, fault.Errorf(fault.Invalid, "local store %q: path is not absolute", c.Root)
	}
	if c.Max < 0 {
		return nil, fault.Errorf(fault.Invalid, "local store %s: LS_MAX of %d bytes", c.Root, c.Max)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Statfs == nil {
		c.Statfs = unix.Statfs
	}
	s := &Store{
		Config: c,
		bases:  map[baseKey]*base{}, pins: map[string]int{}, machines: map[int]localstore.Machine{},
		evicting: map[string]chan struct{}{},
	}
	if err := os.MkdirAll(c.Root, 0o755); err != nil {
		return nil, s.errorf(err)
	}
	if err := s.makeDir(s.baseRoot()); err != nil {
		return nil, s.errorf(err)
	}
	if err := os.MkdirAll(s.machineRoot(), 0o700); err != nil {
		return nil, s.errorf(err)
	}
	if err := s.sweep(); err != nil {
		return nil, s.errorf(err)
	}
	if err := s.loadMachines(); err != nil {
		return nil, s.errorf(err)
	}
	return s, nil
}

func (s *Store) errorf(err error) error {
	return fault.Errorf(fault.ClassOf(err), "local store %s: %w", s.Root, err)
}

func (s *Store) baseRoot() string    { return filepath.Join(s.Root, "base") }
func (s *Store) machineRoot() string { return filepath.Join(s.Root, "machine") }

// dir of a base.
func (s *Store) dir(digest string) (string, error) {
	hex, err := image.ParseDigest(digest)
	return filepath.Join(s.baseRoot(), hex), err
}

// makeDir makes a directory that only root and the group of the hypervisors pass through.
func (s *Store) makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	if err := os.Chown(dir, 0, s.GID); err != nil {
		return err
	}
	return os.Chmod(dir, 0o750)
}

const (
	partMark = durable.PartMark
	deadMark = ".dead-"
)

func completeName(kind localstore.Kind) string {
	if kind == localstore.Tree {
		return "tree.complete"
	}
	return "complete"
}

// sweep takes stock, and removes what is neither complete, nor partial, nor being built by a living process.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.baseRoot())
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(s.baseRoot(), e.Name())
		digest := "blake3:" + e.Name()
		if strings.Contains(e.Name(), deadMark) {
			if err := removeTree(dir); err != nil {
				return err
			}
			continue
		}
		if _, err := image.ParseDigest(digest); err != nil || !e.IsDir() {
			continue // not ours
		}
		if err := s.sweepBase(dir, digest); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweepBase(dir, digest string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another process removed it just now
	}
	if err != nil {
		return err
	}
	kept := map[localstore.Kind]bool{}
	for _, kind := range []localstore.Kind{localstore.Data, localstore.Tree} {
		if mark, err := readComplete(dir, kind); err == nil {
			s.bases[baseKey{digest, kind}] = &base{bytes: mark.Bytes, used: mark.used}
			kept[kind] = true
		}
	}
	if !kept[localstore.Data] {
		if mark, err := readPartial(dir); err == nil {
			s.bases[baseKey{digest, localstore.Data}] = &base{bytes: mark.Bytes, used: mark.used, partial: true}
			kept[localstore.Data] = true
		}
	}
	left := len(entries)
	for _, e := range entries {
		name := e.Name()
		if kept[kindOfFile(name)] && !strings.Contains(name, partMark) {
			continue
		}
		removed, err := removeUnused(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if removed {
			s.Log.Info("what a crash left of a base is removed", "digest", digest, "file", name)
			left--
		}
	}
	if left == 0 {
		_ = os.Remove(dir) // stays when another process builds there by now
	}
	return nil
}

// removeUnused removes a file or directory, unless a living process holds its lock: for who takes that meanwhile, it is gone.
func removeUnused(path string) (removed bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
		if errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK) {
			return false, nil
		}
	}
	return true, removeTree(path)
}

// removeTree removes also what has directories of mode 0, when we are not root.
func removeTree(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}

// Bases implements localstore.Store.
func (s *Store) Bases(context.Context) ([]localstore.Base, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]localstore.Base, 0, len(s.bases))
	for k, b := range s.bases {
		dir, err := s.dir(k.digest)
		if err != nil {
			return nil, err
		}
		s.refresh(k, b, dir)
		list = append(list, localstore.Base{Digest: k.digest, Kind: k.kind, Complete: !b.partial, Bytes: b.bytes, Taken: s.taken(k, b)})
	}
	slices.SortFunc(list, func(a, b localstore.Base) int {
		return cmp.Or(cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Kind, b.Kind))
	})
	return list, nil
}

// Pin implements localstore.Store.
func (s *Store) Pin(digest string) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[digest]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pins[digest]--; s.pins[digest] == 0 {
			delete(s.pins, digest)
		}
	})
}
