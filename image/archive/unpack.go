package archive

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// Unpack unpacks an archive into the directory dir, which exists and is empty, with owners (as root), modes,
// times, and the attributes that containers need: capabilities, ACLs and user attributes. grow, which may be
// nil, is asked before each file for its size in bytes. The caller removes dir when it fails.
func Unpack(ctx context.Context, r io.Reader, dir string, o Options, grow func(int64) error) (Summary, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Summary{}, err
	}
	defer root.Close()
	u := unpacker{root: root, owners: os.Geteuid() == 0, options: o, grow: grow, made: map[string]bool{".": true}}
	sum, err := Walk(ctx, r, o, u.member)
	if err != nil {
		return sum, err
	}
	// Directories last and deepest first: a read-only one must still take its members, and keep its time.
	for i := len(u.directories) - 1; i >= 0; i-- {
		if err := u.directory(u.directories[i]); err != nil {
			return sum, fault.Errorf(fault.ClassOf(err), "archive %s: member %q: %w", o.Name, u.directories[i].Name, err)
		}
	}
	return sum, nil
}

type unpacker struct {
	root        *os.Root
	owners      bool
	options     Options
	grow        func(int64) error
	directories []Member
	made        map[string]bool // directories that exist
}

func (u *unpacker) member(m Member, content io.Reader) error {
	if err := u.parents(path.Dir(m.Path)); err != nil {
		return err
	}
	switch m.Typeflag {
	case tar.TypeDir:
		u.directories = append(u.directories, m)
		return u.parents(m.Path)
	case tar.TypeReg:
		return u.file(m, content)
	case tar.TypeSymlink:
		if err := u.root.Symlink(m.Linkname, m.Path); err != nil {
			return err
		}
	case tar.TypeLink:
		return u.root.Link(m.Link, m.Path)
	default:
		if err := u.node(m); err != nil {
			return err
		}
		if err := u.root.Chmod(m.Path, m.FileInfo().Mode()&modeBits); err != nil {
			return err
		}
	}
	if u.owners {
		return u.root.Lchown(m.Path, m.Uid, m.Gid)
	}
	return nil
}

// parents makes directory p and those above it.
func (u *unpacker) parents(p string) error {
	if u.made[p] {
		return nil
	}
	if err := u.root.MkdirAll(p, 0o755); err != nil {
		return err
	}
	u.made[p] = true
	return nil
}

const modeBits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

func (u *unpacker) file(m Member, content io.Reader) (err error) {
	if u.grow != nil {
		if err := u.grow(m.Size); err != nil {
			return err
		}
	}
	f, err := u.root.OpenFile(m.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return u.attributes(m, f)
}

// attributes sets owner, mode, extended attributes and times of an open file or directory. The owner comes
// first: changing it takes setuid and capabilities away.
func (u *unpacker) attributes(m Member, f *os.File) error {
	if u.owners {
		if err := f.Chown(m.Uid, m.Gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(m.FileInfo().Mode() & modeBits); err != nil {
		return err
	}
	for name, value := range m.PAXRecords {
		attr, ok := strings.CutPrefix(name, xattrPrefix)
		if !ok || !u.takes(attr) {
			continue
		}
		err := unix.Fsetxattr(int(f.Fd()), attr, []byte(value), 0)
		if errors.Is(err, unix.EOPNOTSUPP) && !strings.HasPrefix(attr, "security.") {
			continue
		}
		if err != nil && (u.owners || !errors.Is(err, unix.EPERM)) {
			return &fs.PathError{Op: "attribute " + attr, Path: m.Path, Err: err}
		}
	}
	at := unix.NsecToTimespec(modified(m.ModTime).UnixNano())
	return unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{at, at}, unix.AT_EMPTY_PATH)
}

// modified keeps times that a file system can hold.
func modified(t time.Time) time.Time {
	if t.Before(time.Unix(0, 0)) || t.Year() > 2400 {
		return time.Unix(0, 0)
	}
	return t
}

func (u *unpacker) takes(attr string) bool {
	switch {
	case isOverlayAttr(attr):
		return u.options.Own
	case attr == "security.capability", strings.HasPrefix(attr, "system.posix_acl_"), strings.HasPrefix(attr, "user."):
		return true
	}
	return false
}

func (u *unpacker) directory(m Member) error {
	d, err := u.root.Open(m.Path)
	if err != nil {
		return err
	}
	defer d.Close()
	return u.attributes(m, d)
}

// node makes a FIFO or, in an archive of our own, a device.
func (u *unpacker) node(m Member) error {
	parent, err := u.root.Open(path.Dir(m.Path))
	if err != nil {
		return err
	}
	defer parent.Close()
	mode := uint32(unix.S_IFIFO)
	switch m.Typeflag {
	case tar.TypeChar:
		mode = unix.S_IFCHR
	case tar.TypeBlock:
		mode = unix.S_IFBLK
	}
	device := unix.Mkdev(uint32(m.Devmajor), uint32(m.Devminor))
	return unix.Mknodat(int(parent.Fd()), path.Base(m.Path), mode|0o600, int(device))
}
