// Package lvm is the local store in a volume group (LS_MAD=lvm): one logical volume for each volume.
//
// A volume NAME is the logical volume hayloft-INSTANCE-NAME (long names end in a digest), and carries tags:
//
//	hayloft                    made by Hayloft
//	hayloft.instance=INSTANCE  by which one
//	hayloft.name=NAME          its name; of several, left by a rename, the one that the logical volume is named for counts
//	hayloft.size=BYTES         up to where it was wiped
//	hayloft.owner=UID:GID      who may open the device
//	hayloft.state=making       not to be used yet, and removed when its maker is dead
//	hayloft.state=raw          not wiped, for who writes all of it
//	hayloft.of=UUID            of a snapshot: of which logical volume
//
// What has our name without our tags is somebody else's, and never touched.
//
// Thick volumes are wiped before anybody sees them: the group's disks hold what former tenants wrote. Thin ones are volumes
// of a pool that zeroes what it gives out; they are counted whole, so that no pool of which we know all is ever full.
// Volumes are kept from being activated with the group (activation skip): only who asks for one gets its device.
//
// Two locks, of this host only: one for each volume, held while something is done to it, and one for the group, held while
// space is counted and taken. LVM has its own lock for the group under that.
package lvm

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/disk/localstore/volumelock"
	"hayloft/internal/lvm"
)

// Config of a Store.
type Config struct {
	Path   string            // LS_PATH: GROUP, or GROUP/POOL for thin volumes in a pool that is there
	Layout localstore.Layout // "": Thick, with a POOL Thin. Thin without a POOL: in a pool of ours, made when the first volume is
	Max    int64             // LS_MAX in bytes, 0: none
	// Instance tells the volumes of several Hayloft instances on one group apart: letters, digits and dashes, at most 32 bytes.
	Instance string
	Tools    lvm.Tools // of this host
	LockDir  string    // "": /run/lock/hayloft; all processes of the host that use the group use the same
	Log      *slog.Logger
}

// Store implements localstore.Volumes.
type Store struct {
	Config
	group, pool string // pool "" for thick
	ownPool     bool
	locks       *volumelock.Locks
	gate        *gate
	devices     devices
	patience    time.Duration // see openTime
	extent      int64         // bytes
	looks       batcher[book]
	whole       batcher[struct{}]
	gone        batcher[map[string]error]
}

var _ localstore.Volumes = (*Store)(nil)

// theGroup is the lock of the group: no volume's name.
const theGroup = ""

var instanceForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// Open opens the store, and removes what dead makers left half-made. fault.NotFound when there is no such group or pool;
// fault.Unsupported when the pool does not zero what it gives out.
func Open(ctx context.Context, c Config) (*Store, error) { return open(ctx, c, node{}) }

func open(ctx context.Context, c Config, d devices) (*Store, error) {
	s, err := newStore(c, d)
	if err != nil {
		return nil, err
	}
	group, err := s.Tools.Group(ctx, s.group)
	if err != nil {
		return nil, s.errorf(err)
	}
	if group.Partial {
		return nil, fault.Errorf(fault.Unavailable, "local store %s: disks of the group are missing", s.Path)
	}
	if s.locks, err = volumelock.New(filepath.Join(s.LockDir, "lvm-"+s.group+"-"+s.Instance)); err != nil {
		return nil, s.errorf(err)
	}
	s.gate, s.extent = newGate(s.locks), group.Extent
	s.looks.run = func(ctx context.Context, _ []string) (book, error) { return s.read(ctx) }
	s.whole.run, s.gone.run = s.markWhole, s.removeAll
	leave, err := s.gate.enter(ctx)
	if err != nil {
		return nil, s.errorf(err)
	}
	defer leave()
	b, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.checkPool(b); err != nil {
		return nil, err
	}
	return s, s.sweep(ctx, b)
}

func newStore(c Config, d devices) (*Store, error) {
	bad := func(format string, args ...any) (*Store, error) {
		return nil, fault.Errorf(fault.Invalid, "local store %s: %s", c.Path, fmt.Sprintf(format, args...))
	}
	if c.Instance == "" {
		c.Instance = "hayloft"
	}
	if c.LockDir == "" {
		c.LockDir = "/run/lock/hayloft"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if !instanceForm.MatchString(c.Instance) {
		return bad("instance %q: lower case letters, digits and dashes, at most 32", c.Instance)
	}
	if c.Max < 0 {
		return bad("LS_MAX of %d bytes", c.Max)
	}
	s := &Store{Config: c, devices: d, patience: openTime}
	var named bool
	s.group, s.pool, named = strings.Cut(strings.TrimPrefix(c.Path, "/dev/"), "/")
	if err := lvm.CheckGroup(s.group); err != nil {
		return bad("LS_PATH is no volume group: %v", err)
	}
	if err := lvm.CheckVolume(s.group, "hayloft-"+s.instance()+"-"+strings.Repeat("x", 2*digestBytes+1)); err != nil {
		return bad("instance %q: %v", c.Instance, err)
	}
	if named {
		if err := lvm.CheckVolume(s.group, s.pool); err != nil {
			return bad("LS_PATH is no thin pool: %v", err)
		}
	}
	switch {
	case s.Layout == "" && named:
		s.Layout = localstore.Thin
	case s.Layout == "":
		s.Layout = localstore.Thick
	case s.Layout == localstore.Thick && named:
		return bad("thick volumes are not in a pool")
	case s.Layout == localstore.Thin && !named:
		s.pool, s.ownPool = "hayloft-"+s.instance()+"-_pool", true
	case s.Layout != localstore.Thick && s.Layout != localstore.Thin:
		return nil, fault.Errorf(fault.Unsupported, "local store %s: layout %q", c.Path, s.Layout)
	}
	return s, nil
}

// instance as a part of names: without dashes, so that no two instances share names.
func (s *Store) instance() string { return strings.ReplaceAll(s.Instance, "-", "_") }

func (s *Store) thin() bool { return s.Layout == localstore.Thin }

func (s *Store) errorf(err error) error {
	return fault.Errorf(fault.ClassOf(err), "local store %s: %w", s.Path, err)
}

// unread is the error of a group that cannot be read: its being missing says nothing about volumes.
func (s *Store) unread(err error) error {
	if fault.Is(err, fault.NotFound) {
		return fault.Errorf(fault.Unavailable, "local store %s: %w", s.Path, err)
	}
	return s.errorf(err)
}

// sweep removes what dead makers left. The group is locked.
func (s *Store) sweep(ctx context.Context, b book) error {
	for _, e := range b.ours {
		if !e.making {
			continue
		}
		unlock, free, err := s.locks.TryLock(e.name)
		if err != nil {
			return s.errorf(err)
		}
		if !free {
			continue // its maker lives
		}
		s.Log.Info("remove a volume that was left half-made", "volume", e.name, "store", s.Path)
		err = s.remove(ctx, e.Name)
		unlock()
		if err != nil {
			return s.errorf(err)
		}
	}
	return nil
}

// devices is what the kernel makes of active logical volumes.
type devices interface {
	path(group, name string) string
	// there says whether the device node is.
	there(path string) error
	own(path string, uid, gid int) error
	block() bool
}

// node is a block device below /dev.
type node struct{}

func (node) path(group, name string) string { return lvm.Path(group, name) }

func (node) there(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fault.Errorf(fault.Busy, "%s is no block device", path)
	}
	return nil
}

func (node) own(path string, uid, gid int) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}

func (node) block() bool { return true }
