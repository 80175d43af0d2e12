// Package url is the read-only repository driver for disk images that stand ready elsewhere in formats or at places that
// only QEMU knows. BASE_PATH is what all objects are below, FORMAT the format that all have:
//
//	/DIRECTORY                   FORMAT qcow2, vmdk, vdi or vhdx; read by package path
//	https://HOST/PATH, http://   FORMAT as above; read by package http, with its options
//	nfs://HOST/PATH              FORMAT as above or raw; read by QEMU in user space, with the options UID and GID: who the
//	                             server takes us for (65534)
//	gluster://HOST[:PORT]/VOLUME[/PATH]   FORMAT as above or raw; by QEMU. Not tested: see docs/storage.md
//
// Without FORMAT it is raw. The size of an object is what a machine would see, in whole sectors of 512 bytes: a raw file
// of another length ends with zeros. An image that refers to other files (backing file, external data, extents) is not
// opened; its own header is looked at before QEMU sees it. What lies at the other end of http, nfs and gluster cannot be
// listed by QEMU: List is fault.Unsupported unless package http can.
package url

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/http"
	pathdriver "hayloft/disk/repository/path"
	"hayloft/disk/repository/qemublock"
)

// Repository implements repository.Repository below a URL.
type Repository struct {
	label  string                           // as in errors
	format string                           // "raw": none
	inner  repository.Repository            // reads the bytes; nil: QEMU does
	node   func(name string) qemublock.Node // where QEMU finds an object
	limit  time.Duration                    // of one request
}

var _ repository.Repository = (*Repository)(nil)

const (
	defaultLimit = 30 * time.Second
	nobody       = 65534
	maxID        = 1<<32 - 2
)

// New describes the repository; nothing is contacted yet.
func New(r disk.Repository) (*Repository, error) {
	u := &Repository{label: fmt.Sprintf("datastore %d (%s)", r.ID, r.Path), format: strings.ToLower(r.Options["FORMAT"]), limit: defaultLimit}
	switch u.format {
	case "":
		u.format = "raw"
	case "raw", "qcow2", "vmdk", "vdi", "vhdx":
	default:
		return nil, fault.Errorf(fault.Invalid, "datastore %d: FORMAT %q is none of raw, qcow2, vmdk, vdi, vhdx", r.ID, u.format)
	}
	if err := u.place(r); err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "datastore %d: %w", r.ID, err)
	}
	return u, nil
}

// place finds out who reads what is below BASE_PATH.
func (r *Repository) place(d disk.Repository) (err error) {
	scheme, _, _ := strings.Cut(d.Path, "://")
	switch {
	case strings.HasPrefix(d.Path, "/"):
		if r.format == "raw" {
			return fault.Errorf(fault.Invalid, "BASE_PATH %s is a directory: raw images there are for the driver path", d.Path)
		}
		r.inner, err = pathdriver.New(d)
		return err
	case scheme == "http" || scheme == "https":
		if r.format == "raw" {
			return fault.Errorf(fault.Invalid, "raw images over %s are for the driver http", scheme)
		}
		r.inner, err = http.New(d)
		return err
	}
	u, err := url.Parse(d.Path)
	switch {
	case err != nil:
		return fault.Errorf(fault.Invalid, "BASE_PATH is no URL: %w", errors.Unwrap(err))
	case u.Host == "" || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fault.Errorf(fault.Invalid, "BASE_PATH %q is not SCHEME://HOST/PATH", d.Path)
	case u.Scheme == "nfs":
		return r.placeNFS(u, d.Options)
	case u.Scheme == "gluster":
		return r.placeGluster(u)
	}
	return fault.Errorf(fault.Invalid, "BASE_PATH %q: %s:// is none of nfs, gluster, http, https", d.Path, u.Scheme)
}

func (r *Repository) placeNFS(u *url.URL, options map[string]string) error {
	if u.Port() != "" {
		return fault.Errorf(fault.Invalid, "BASE_PATH %q: QEMU's NFS asks the server's portmapper, and takes no port", u)
	}
	ids := [2]int{nobody, nobody}
	for i, option := range []string{"UID", "GID"} {
		if text := options[option]; text != "" {
			id, err := strconv.ParseUint(text, 10, 32)
			if err != nil || id > maxID {
				return fault.Errorf(fault.Invalid, "%s %q is not a number from 0 to %d", option, text, maxID)
			}
			ids[i] = int(id)
		}
	}
	r.node = func(name string) qemublock.Node {
		return qemublock.NFS{Host: u.Hostname(), Path: path.Join("/", u.Path, name), UID: ids[0], GID: ids[1]}
	}
	return nil
}

func (r *Repository) placeGluster(u *url.URL) error {
	volume, below, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if volume == "" {
		return fault.Errorf(fault.Invalid, "BASE_PATH %q has no volume", u)
	}
	r.node = func(name string) qemublock.Node {
		return qemublock.Gluster{Host: u.Hostname(), Port: u.Port(), Volume: volume, Path: path.Join("/", below, name)[1:]}
	}
	return nil
}

func (r *Repository) object(name string, err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "%s: object %s: %w", r.label, name, err)
}

func (r *Repository) readOnly(name, what string) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return fault.Errorf(fault.Unsupported, "%s: object %s: cannot be %s, a repository of driver url is read-only", r.label, name, what)
}

// Create implements repository.Repository: always fault.Unsupported.
func (r *Repository) Create(_ context.Context, name string) (repository.Writer, error) {
	return nil, r.readOnly(name, "created")
}

// Delete implements repository.Repository: always fault.Unsupported.
func (r *Repository) Delete(_ context.Context, name string) error { return r.readOnly(name, "deleted") }

// Capacity implements repository.Repository. Nothing is known of most places, so all of it is zero there.
func (r *Repository) Capacity(ctx context.Context) (disk.Capacity, error) {
	if r.inner != nil {
		return r.inner.Capacity(ctx)
	}
	return disk.Capacity{}, ctx.Err()
}

// Close closes what is idle.
func (r *Repository) Close() error {
	if c, ok := r.inner.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}
