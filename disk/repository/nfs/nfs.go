// Package nfs is the repository driver for an NFS server, by the kernel's client: it mounts the export, version 4, and is
// package path in there. BASE_PATH is SERVER:/EXPORT. Options of the datastore:
//
//	MOUNT_OPTIONS  words with commas between them, of those that this package lists; they come after ours
//
// All repositories of a host that have the same export and options share one mount, below Dir. It is made at the first use,
// and goes when nobody uses it: at Close of the last, or some time after. It is nosuid, nodev and noexec whatever the
// options say. With ours (softerr, timeo, retrans) a server that is away makes errors of class fault.Unavailable after a
// minute, where the kernel's defaults would have whoever asks wait for ever; "hard" asks for these. Names that are not
// there are not remembered (lookupcache=positive), so that no host overlooks what another one made.
//
// Locks are the server's, with leases: those of a host that died are over after the server's lease time (90 seconds of
// Linux servers), when another one asks for them. Hosts need different names (or nfs4_unique_id): a server takes two of one
// name for one that restarts again and again, and drops its locks. To hand a persistent image to a hypervisor's user the export needs
// no_root_squash. Clones are reflinks where the server's file system has them and copies by the server elsewhere, with
// NFS 4.2; with older versions this host copies.
package nfs

import (
	"fmt"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository/path"
	"hayloft/internal/command"
)

// Dir is where mounts are, one in a directory each.
const Dir = "/run/hayloft/nfs"

// Repository implements what path.Repository does, and io.Closer.
type Repository struct {
	*path.Repository
	mount *mount
}

// Config is what else than the datastore a Repository needs, for tests.
type Config struct {
	Dir    string         // "": Dir
	Runner command.Runner // nil: programs are run
	Idle   time.Duration  // without use until a mount may go; 0: 10 minutes
	Grace  time.Duration  // for those who were given a path to open it; 0: 10 minutes
}

const (
	idleAfter    = 10 * time.Minute
	defaultGrace = 10 * time.Minute
)

// New describes the repository; nothing is contacted yet. Errors: fault.Invalid for address and options.
func New(r disk.Repository) (*Repository, error) { return Config{}.New(r) }

// New is as the function of that name.
func (c Config) New(r disk.Repository) (*Repository, error) {
	source, err := parseSource(r.Path)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "datastore %d: %w", r.ID, err)
	}
	label := fmt.Sprintf("datastore %d (%s)", r.ID, source)
	options, err := parseOptions(r.Options["MOUNT_OPTIONS"])
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "%s: MOUNT_OPTIONS: %w", label, err)
	}
	if c.Dir == "" {
		c.Dir = Dir
	}
	if c.Runner == nil {
		c.Runner = command.Exec{}
	}
	if c.Idle == 0 {
		c.Idle = idleAfter
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	m := newMount(c, source, options)
	return &Repository{path.OnMount(label, m.dir, m), m}, nil
}

// Close ends the use of the mount. It is unmounted when nobody else uses it, also nobody who was given a path not long
// ago; no error tells that it was not.
func (r *Repository) Close() error { return r.mount.close() }
