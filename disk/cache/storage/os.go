package storage

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// Access says who besides the owner may open a directory's files.
type Access struct {
	Names []string    // of the files; none: all of them
	Mode  fs.FileMode // 0440, 0640; those that no Access names have 0600
	GID   int         // group of the files; 0 or less leaves it
}

// OS is a directory of the operating system, which must be there already. Its files implement Descriptor.
// fault.Invalid for what is not a directory.
func OS(dir string, access ...Access) (Dir, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("cache directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fault.Errorf(fault.Invalid, "cache directory %s is not a directory", dir)
	}
	return &osDir{path: dir, access: access}, nil
}

type osDir struct {
	path   string
	access []Access
}

// at is where a file is. Names cannot lead out of the directory.
func (d *osDir) at(name string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return "", fault.Errorf(fault.Invalid, "cache file %q: not a name", name)
	}
	return filepath.Join(d.path, name), nil
}

func (d *osDir) accessOf(name string) (fs.FileMode, int) {
	for _, a := range d.access {
		if len(a.Names) == 0 || slices.Contains(a.Names, name) {
			return a.Mode.Perm(), a.GID
		}
	}
	return 0o600, 0
}

func (d *osDir) Open(name string) (File, error) { return d.open(name, 0) }

func (d *osDir) Create(name string) (File, error) {
	f, err := d.open(name, os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	if err := d.give(f.File, name); err != nil {
		f.Close()
		return nil, err
	}
	f.grown.Store(true)
	return f, nil
}

func (d *osDir) open(name string, flags int) (*osFile, error) {
	path, err := d.at(name)
	if err != nil {
		return nil, err
	}
	flags |= os.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC
	f, err := os.OpenFile(path, flags, 0o600)
	if mode, _ := d.accessOf(name); os.IsPermission(err) && mode&0o200 == 0 && os.Chmod(path, mode|0o200) == nil {
		// Ours, but not writable; root would have been let in.
		f, err = os.OpenFile(path, flags, 0o600)
		if restore := os.Chmod(path, mode); restore != nil && err == nil {
			f.Close()
			return nil, restore
		}
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.Errorf(fault.Invalid, "cache file %s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	file := &osFile{File: f}
	file.size.Store(info.Size())
	return file, nil
}

// give sets group and permissions, the group first so that nobody else is let in meanwhile.
func (d *osDir) give(f *os.File, name string) error {
	mode, gid := d.accessOf(name)
	if gid > 0 {
		if err := f.Chown(-1, gid); err != nil {
			return err
		}
	}
	return f.Chmod(mode)
}

// Rename gives the file the permissions of its new name first.
func (d *osDir) Rename(from, to string) error {
	a, err := d.at(from)
	if err != nil {
		return err
	}
	b, err := d.at(to)
	if err != nil {
		return err
	}
	oldMode, oldGID := d.accessOf(from)
	if mode, gid := d.accessOf(to); mode != oldMode || gid != oldGID {
		f, err := os.OpenFile(a, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = d.give(f, to)
		f.Close()
		if err != nil {
			return err
		}
	}
	return os.Rename(a, b)
}

func (d *osDir) Remove(name string) error {
	path, err := d.at(name)
	if err != nil {
		return err
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}

func (d *osDir) Names() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (d *osDir) Sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
