// Package path is the repository driver for a directory: a local one, an NFS mount or a cluster file system.
//
// An object is a file. While it is written it is a hidden file beside its place, held by a lock file that the
// kernel lets go when its writer dies, so two hosts never write one object. On NFS the server has these locks, and ends
// those of a host that died after its lease time; each host needs a name of its own there, see package nfs. A host that
// was away for longer finds that its object was taken, and publishes nothing.
//
// Clones share blocks (reflink) or are copied by the kernel or the server, see CreateFrom.
package path

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
)

// Repository implements repository.Repository, Writable and Linker on a directory.
type Repository struct {
	label   string // as in errors
	base    string
	gate    *gate
	hanging hangs
	mount   Mount // nil: the directory is simply there
}

// Mount is what the directory of a repository is on, when somebody must see to that. Safe for concurrent use.
type Mount interface {
	// Ready mounts it where it is not, before each operation. Errors are classified.
	Ready(ctx context.Context) error
	// Check says fault.Unavailable when the directory that was opened is not on the mount, but what lies under it.
	Check(root *os.Root) error
	// Handed is told that a path below was given to somebody who will open it.
	Handed()
}

var (
	_ repository.Repository = (*Repository)(nil)
	_ repository.Writable   = (*Repository)(nil)
	_ repository.Linker     = (*Repository)(nil)
	_ repository.Sweeper    = (*Repository)(nil)
)

// New describes the repository in directory r.Path, which must be absolute; nothing is opened yet.
func New(r disk.Repository) (*Repository, error) {
	if !filepath.IsAbs(r.Path) {
		return nil, fault.Errorf(fault.Invalid, "datastore %d: path %q is not absolute", r.ID, r.Path)
	}
	label := fmt.Sprintf("datastore %d (%s)", r.ID, r.Path)
	return &Repository{label: label, base: filepath.Clean(r.Path), gate: newGate(label)}, nil
}

// OnMount describes the repository in directory base, which is on m; label names it in errors.
func OnMount(label, base string, m Mount) *Repository {
	return &Repository{label: label, base: base, gate: newGate(label), mount: m}
}

// within runs f with the directory opened: every name f uses is resolved inside it, links included.
func (r *Repository) within(ctx context.Context, f func(root *os.Root) error) error {
	if err := r.ready(ctx); err != nil {
		return err
	}
	return r.gate.run(ctx, func() error {
		root, err := r.openRoot()
		if err != nil {
			return err
		}
		defer root.Close()
		return f(root)
	})
}

func (r *Repository) ready(ctx context.Context) error {
	if r.mount == nil {
		return nil
	}
	if err := r.mount.Ready(ctx); err != nil {
		return fault.Errorf(fault.ClassOf(err), "%s: %w", r.label, err)
	}
	return nil
}

// openRoot opens the directory. It may hang.
func (r *Repository) openRoot() (*os.Root, error) {
	root, err := os.OpenRoot(r.base)
	if err != nil {
		return nil, fault.Errorf(fault.Unavailable, "%s: cannot be reached: %w", r.label, bare(err))
	}
	if r.mount == nil {
		return root, nil
	}
	if err := r.mount.Check(root); err != nil {
		root.Close()
		return nil, fault.Errorf(fault.ClassOf(err), "%s: cannot be reached: %w", r.label, err)
	}
	return root, nil
}

// handed gives a path to somebody who will open it.
func (r *Repository) handed(name string) string {
	if r.mount != nil {
		r.mount.Handed()
	}
	return r.filePath(name)
}

// object puts repository and object into err and classifies it.
func (r *Repository) object(name string, err error) error {
	if err == nil {
		return nil
	}
	class := fault.ClassOf(err)
	if class == fault.Internal && isStorage(err) {
		class = fault.Unavailable
	}
	return fault.Errorf(class, "%s: object %s: %w", r.label, name, bare(err))
}

// isStorage reports errors that mean the storage behind the directory is in trouble.
func isStorage(err error) bool {
	for _, e := range []syscall.Errno{unix.EIO, unix.ESTALE, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.EHOSTUNREACH,
		unix.ENOTCONN, unix.ENODEV, unix.EREMOTEIO, unix.ESHUTDOWN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// bare takes the operation and path of os's errors away; ours say both better.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}

// hidden is a name beside name that List does not show.
func hidden(name, suffix string) string {
	dir, file := path.Split(name)
	return dir + "." + file + suffix
}

func (r *Repository) filePath(name string) string {
	return filepath.Join(r.base, filepath.FromSlash(name))
}

// Stat implements repository.Repository.
func (r *Repository) Stat(ctx context.Context, name string) (repository.Info, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Info{}, err
	}
	var info repository.Info
	err := r.within(ctx, func(root *os.Root) error {
		fi, err := lstatFile(root, name)
		if err == nil {
			info = repository.Info{Name: name, Size: fi.Size(), Modified: fi.ModTime()}
		}
		return r.object(name, err)
	})
	if err != nil {
		return repository.Info{}, err
	}
	return info, nil
}

// lstatFile refuses what is there but is not a plain file.
func lstatFile(root *os.Root, name string) (os.FileInfo, error) {
	fi, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fault.Errorf(fault.Invalid, "is a %s, not a file", kindOf(fi.Mode()))
	}
	return fi, nil
}

func kindOf(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&os.ModeSymlink != 0:
		return "symbolic link"
	case m&os.ModeDevice != 0:
		return "device node"
	}
	return "special file"
}

// Delete implements repository.Repository.
func (r *Repository) Delete(ctx context.Context, name string) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return r.within(ctx, func(root *os.Root) error {
		if _, err := lstatFile(root, name); err != nil { // also while somebody writes it
			return r.object(name, err)
		}
		// Nobody becomes its owner while it goes.
		if err := withLock(ctx, root, name, func(root *os.Root) error { return remove(root, name) }); err != nil {
			return r.object(name, err)
		}
		removeEmptyParents(root, name)
		return r.object(name, syncDir(root, path.Dir(name)))
	})
}

func remove(root *os.Root, name string) error {
	if _, err := lstatFile(root, name); err != nil {
		return err
	}
	switch mark, err := readMark(root, name); {
	case err == nil:
		return mark.Busy()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return root.Remove(name)
}

// removeEmptyParents tidies folders that Create made; the first that is not empty ends it.
func removeEmptyParents(root *os.Root, name string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if root.Remove(dir) != nil {
			return
		}
	}
}

func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some network file systems have no fsync of directories
		return err
	}
	return nil
}

// List implements repository.Repository.
func (r *Repository) List(ctx context.Context, prefix string) ([]repository.Info, error) {
	var list []repository.Info
	err := r.within(ctx, func(root *os.Root) error {
		var found []repository.Info
		err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // deleted while we look
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case name == ".":
				return nil
			case strings.HasPrefix(d.Name(), "."), d.IsDir() && !strings.HasPrefix(name+"/", prefix) && !strings.HasPrefix(prefix, name+"/"):
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			case !d.Type().IsRegular(), !strings.HasPrefix(name, prefix), repository.CheckName(name) != nil:
				return nil
			}
			fi, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil {
				found = append(found, repository.Info{Name: name, Size: fi.Size(), Modified: fi.ModTime()})
			}
			return err
		})
		if err != nil {
			return r.object(prefix, err)
		}
		sort.Slice(found, func(i, j int) bool { return found[i].Name < found[j].Name })
		list = found
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Capacity implements repository.Repository.
func (r *Repository) Capacity(ctx context.Context) (disk.Capacity, error) {
	var st unix.Statfs_t
	err := r.within(ctx, func(root *os.Root) error {
		d, err := root.Open(".")
		if err != nil {
			return fault.Errorf(fault.Unavailable, "%s: cannot be reached: %w", r.label, bare(err))
		}
		defer d.Close()
		var s unix.Statfs_t
		if err := unix.Fstatfs(int(d.Fd()), &s); err != nil {
			return fault.Errorf(fault.Unavailable, "%s: cannot be reached: %w", r.label, err)
		}
		st = s
		return nil
	})
	if err != nil {
		return disk.Capacity{}, err
	}
	unit := int64(st.Bsize)
	return disk.Capacity{Total: int64(st.Blocks) * unit, Free: int64(st.Bavail) * unit, Used: int64(st.Blocks-st.Bfree) * unit}, nil
}
