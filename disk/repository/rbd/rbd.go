// Package rbd is the repository driver for images of Ceph. BASE_PATH is POOL or POOL/NAMESPACE. Images are managed with
// the rbd and rados tools and read and written by QEMU in user space (package qemublock). Options of the datastore:
//
//	CEPH_CONF     path of ceph.conf; /etc/ceph/ceph.conf
//	CEPH_USER     without "client."; admin. It needs what Ceph calls "profile rbd" for monitors and pool
//	CEPH_KEYRING  keyring of that user, which only its owner can read; without it /etc/ceph/ceph.client.USER.keyring
//	              when there is one
//	ATTACH        "user" or "kernel": whether persistent images are made devices of this host by rbd map
//
// An object, small ones like indexes too, is an image of exactly its length in bytes, under its own name with "/" and
// a few others escaped (see encode): one kind of thing to list, rename, clone and look at with Ceph's own tools. What is
// Hayloft's is in the omap of the rados object "hayloft.images", by the image's id, which is never used again: so what
// others make, copy or rename is not taken for ours, and never listed, opened, changed or deleted. Names that begin with
// ".hayloft." are for what is unfinished.
//
// A clone is a copy-on-write image of format 1: on a protected snapshot that it has for itself, named
// "hayloft.clone....", so that it goes when the clone is deleted or flattened, and Ceph itself keeps the parent. Kernels
// cannot map an image with more than 510 snapshots, which are its clones.
//
// Who owns a persistent image is an exclusive lock (of Ceph's object class "lock") on the image's header, named
// hayloft.owner, with owner and generation in its description; writes that are not drained are another one, named
// hayloft.undrained. Both are taken and broken atomically by the OSD and go with the image. (The lock of "rbd lock add"
// is the one that the features object-map and fast-diff need, without which QEMU cannot tell holes.) Who comes next has
// the former one's clients blocklisted, so that nothing they sent late arrives: that is what holds against a host that
// comes back from the dead. It needs a monitor's consent, so an image cannot be taken while no monitor answers.
package rbd

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
	"hayloft/internal/command"
)

// Repository implements repository.Repository, Writable, Cloner and Sweeper on a pool.
type Repository struct {
	label           string // as in errors
	pool, namespace string
	conf, user      string
	keyring         string // "": none
	kernel          bool
	runner          command.Runner
	limit           time.Duration // of one step at the cluster
	known           *sync.Map     // ids of images that are ours: true
}

var (
	_ repository.Repository = (*Repository)(nil)
	_ repository.Writable   = (*Repository)(nil)
	_ repository.Cloner     = (*Repository)(nil)
	_ repository.Depender   = (*Repository)(nil)
	_ repository.Sweeper    = (*Repository)(nil)
)

const (
	defaultConf  = "/etc/ceph/ceph.conf"
	defaultUser  = "admin"
	defaultLimit = 30 * time.Second // storage that is well takes far less
)

// New describes the repository; nothing is contacted yet, and the keyring is read when it is needed.
func New(r disk.Repository) (*Repository, error) {
	repo := &Repository{label: fmt.Sprintf("datastore %d (%s)", r.ID, r.Path), conf: r.Options["CEPH_CONF"], user: r.Options["CEPH_USER"],
		keyring: r.Options["CEPH_KEYRING"], runner: command.Exec{}, limit: defaultLimit, known: &sync.Map{}}
	var below bool
	repo.pool, repo.namespace, below = strings.Cut(r.Path, "/")
	for what, part := range map[string]string{"pool": repo.pool, "namespace": repo.namespace} {
		if part == "" && (what == "pool" || below) || strings.ContainsAny(part, "/@\x00\r\n") || strings.HasPrefix(part, "-") {
			return nil, fault.Errorf(fault.Invalid, "datastore %d: BASE_PATH %q is not POOL or POOL/NAMESPACE: %s %q", r.ID, r.Path, what, part)
		}
	}
	if repo.conf == "" {
		repo.conf = defaultConf
	}
	if repo.user == "" {
		repo.user = defaultUser
	}
	for option, path := range map[string]string{"CEPH_CONF": repo.conf, "CEPH_KEYRING": repo.keyring} {
		if path != "" && !filepath.IsAbs(path) {
			return nil, fault.Errorf(fault.Invalid, "%s: %s %q is not absolute", repo.label, option, path)
		}
	}
	if strings.HasPrefix(repo.user, "client.") || strings.ContainsAny(repo.user, " \t\r\n\x00[]") {
		return nil, fault.Errorf(fault.Invalid, "%s: CEPH_USER %q is not a name without \"client.\"", repo.label, repo.user)
	}
	switch attach := strings.ToLower(r.Options["ATTACH"]); attach {
	case "", "user":
	case "kernel":
		repo.kernel = true
	default:
		return nil, fault.Errorf(fault.Invalid, "%s: ATTACH %q is neither user nor kernel", repo.label, attach)
	}
	return repo, nil
}

// object puts repository and object into err, keeping its class.
func (r *Repository) object(name string, err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "%s: object %s: %w", r.label, name, err)
}

// node is how QEMU opens an image.
func (r *Repository) node(image string) (qemublock.RBD, error) {
	n := qemublock.RBD{Pool: r.pool, Namespace: r.namespace, Image: image, Conf: r.conf, User: r.user}
	keyring := r.keyringPath()
	if keyring == "" {
		return n, nil
	}
	var err error
	n.Key, err = readKey(keyring, r.user)
	return n, err
}
