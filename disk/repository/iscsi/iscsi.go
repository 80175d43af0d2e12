// Package iscsi is the repository driver for a storage server with a volume group and an iSCSI target (tgt; LIO is not
// supported). BASE_PATH is the volume group. Objects are logical volumes, managed on the server with LVM's tools and
// tgtadm, and read and written by QEMU in user space (package qemublock). Options of the datastore:
//
//	HOST                [user@]host[:port] of the storage server, by SSH; without it LVM and tgtd are those of this host
//	PORT, KEY_FILE, KNOWN_HOSTS_FILE  of that SSH, see package remote. The user must be root there, for LVM and tgtadm
//	PORTAL              addr[:port] of the target; without it HOST, else 127.0.0.1, port 3260
//	TARGET              prefix of targets' names; iqn.2026-01.org.hayloft
//	POOL                thin pool in the group for new volumes; without it they are thick
//	ATTACH              "user" or "kernel": whether persistent images are made devices of this host by open-iscsi
//	CHAP_USER, CHAP_PASSWORD_FILE  an account that the target has (tgtadm --mode account), and its password in a file that
//	                    only its owner can read. The kernel's initiator takes them from /etc/iscsi/iscsid.conf instead
//
// A volume of ours is tagged hayloft.repository, and its name is "hl-" and the object's with a few characters escaped (see
// encode); one that is being written "hlp-", one that is being deleted "hld-". Volumes with such names but without the tag
// are somebody else's: never listed, opened, changed or deleted. Exact size, time of the last change, and who owns a
// persistent image are tags too. What one of several hosts may do is decided by LVM: a tag is replaced by a command that
// selects the volume by its UUID and the tag that it should have, which LVM does as one step under the group's lock.
//
// A thick volume shows what was on the disks before. So a writer remembers what it wrote, and the rest is zeroed before the
// object appears, up to the end of the volume, which is longer than the object: LVM has whole extents.
//
// Each opening makes a target of its own, for one address of this host (with CHAP for all), and takes it away when it ends;
// so who owns an image next can take away what the one before him still writes through. Targets for writing are never made
// again under the same name: what a server that crashed has forgotten, nobody takes for written.
//
// The target tells no holes, and cannot give space back: what is read is read whole, and what is discarded is zeroed. The kernel
// sees whole volumes, so with ATTACH kernel a persistent image must be as long as whole extents of the group.
//
// A clone of a thin volume is a thin snapshot and depends on nobody. One of a thick volume is a copy-on-write snapshot with room for
// all that can change (lvm.SnapshotSpace), and depends on it: LVM removes snapshots with their origin, and does not make an origin longer
// while one of them is active. Where that does not serve it is a copy, made on the server: see how. A clone that was made
// independent has its volume under the prefix "hlf-".
package iscsi

import (
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/internal/command"
	"hayloft/internal/lvm"
	"hayloft/internal/remote"
)

// Repository implements repository.Repository, Writable, Cloner and Sweeper on a volume group.
type Repository struct {
	label              string // as in errors
	group, pool        string
	portal             string // host:port
	prefix             string // of targets' names
	user, passwordFile string // "": no CHAP
	kernel             bool
	server             command.Runner
	local              command.Runner // of this host, for the kernel's initiator
	host               io.Closer      // nil: this host
	device             func(name string) string
	limit              time.Duration // of one step at the server, and one request
	lease              time.Duration // of a writer

	detached sync.WaitGroup // commands that go on although their caller has left
}

var (
	_ repository.Repository = (*Repository)(nil)
	_ repository.Writable   = (*Repository)(nil)
	_ repository.Cloner     = (*Repository)(nil)
	_ repository.Copier     = (*Repository)(nil)
	_ repository.Depender   = (*Repository)(nil)
	_ repository.Sweeper    = (*Repository)(nil)
	_ io.Closer             = (*Repository)(nil)
)

const (
	defaultPrefix = "iqn.2026-01.org.hayloft"
	defaultPort   = "3260"
	defaultLimit  = 30 * time.Second // storage that is well takes far less
	defaultLease  = 5 * time.Minute  // longer than any command that depends on it: see lvmLimit
)

var iqn = regexp.MustCompile(`^iqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9.-]+(:[a-z0-9.:-]+)?$`)

// New describes the repository; nothing is contacted yet.
func New(r disk.Repository) (*Repository, error) {
	repo := &Repository{label: fmt.Sprintf("datastore %d (%s)", r.ID, r.Path), group: r.Path, pool: r.Options["POOL"],
		prefix: r.Options["TARGET"], user: r.Options["CHAP_USER"], passwordFile: r.Options["CHAP_PASSWORD_FILE"],
		server: command.Exec{}, local: command.Exec{}, limit: defaultLimit, lease: defaultLease}
	repo.device = func(name string) string { return lvm.Path(repo.group, name) }
	fail := func(format string, args ...any) (*Repository, error) {
		return nil, fault.Errorf(fault.Invalid, "%s: %w", repo.label, fmt.Errorf(format, args...))
	}
	if err := lvm.CheckGroup(repo.group); err != nil {
		return fail("BASE_PATH: %w", err)
	}
	if repo.pool != "" {
		if err := lvm.CheckVolume(repo.group, repo.pool); err != nil {
			return fail("POOL: %w", err)
		}
	}
	if repo.prefix == "" {
		repo.prefix = defaultPrefix
	}
	if !iqn.MatchString(repo.prefix) || len(repo.prefix) > 100 {
		return fail("TARGET %q is not like %s", repo.prefix, defaultPrefix)
	}
	if (repo.user == "") != (repo.passwordFile == "") {
		return fail("CHAP needs both CHAP_USER and CHAP_PASSWORD_FILE")
	}
	if strings.HasPrefix(repo.user, "-") || strings.ContainsFunc(repo.user, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return fail("CHAP_USER %q is not a name", repo.user)
	}
	switch attach := strings.ToLower(r.Options["ATTACH"]); attach {
	case "", "user":
	case "kernel":
		repo.kernel = true
	default:
		return fail("ATTACH %q is neither user nor kernel", attach)
	}
	portal := "127.0.0.1"
	if r.Options["HOST"] != "" {
		config, err := remote.FromOptions(r.Options)
		if err != nil {
			return fail("%w", err)
		}
		host, err := remote.New(config)
		if err != nil {
			return fail("%w", err)
		}
		repo.server, repo.host, portal = host, host, host.Hostname()
	}
	if given := r.Options["PORTAL"]; given != "" {
		portal = given
	}
	if _, _, err := net.SplitHostPort(portal); err != nil {
		portal = net.JoinHostPort(strings.Trim(portal, "[]"), defaultPort)
	}
	repo.portal = portal
	if host, port, err := net.SplitHostPort(portal); err != nil || host == "" || port == "" || strings.ContainsAny(portal, " /,@\r\n\x00") || portal[0] == '-' {
		return fail("PORTAL %q is not addr[:port]", portal)
	}
	return repo, nil
}

// Close ends the connection to the server. What was opened must be closed before.
func (r *Repository) Close() error {
	var err error
	if r.host != nil {
		err = r.host.Close()
	}
	r.detached.Wait() // each ends by itself, see attended
	return err
}

// object puts repository and object into err, keeping its class.
func (r *Repository) object(name string, err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "%s: object %s: %w", r.label, name, err)
}

// whole is object for what is about the repository itself.
func (r *Repository) whole(err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "%s: %w", r.label, err)
}

// address is that of this host as the target sees it.
func (r *Repository) address(ctx context.Context) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", r.portal) // sends nothing
	if err != nil {
		return "", fault.Errorf(fault.Unavailable, "portal %s: %w", r.portal, err)
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}
