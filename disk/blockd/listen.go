package blockd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// maxSocketPath is what the kernel takes, see unix(7).
const maxSocketPath = 107

// listen makes a unix socket that uid and gid may connect to with the rights mode, in place of what is there.
// Closing it leaves the file: whoever closes removes it, if it is still this one.
func listen(path string, uid, gid int, mode os.FileMode) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fault.Errorf(fault.Invalid, "socket %s: the path has %d bytes, a unix socket's has %d at most", path, len(path), maxSocketPath)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer dir.Close()
	l, err := bind(dir, filepath.Base(path), uid, gid, mode)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// bind makes the socket under a name beside its own, complete with its rights before anybody can connect, and
// renames it. The way through the directory's descriptor keeps that name short enough.
func bind(dir *os.File, name string, uid, gid int, mode os.FileMode) (*net.UnixListener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close() // the listener has a copy
	var id [8]byte
	if _, err := unix.Getrandom(id[:], 0); err != nil {
		return nil, err
	}
	temp := fmt.Sprintf(".new-%x", id)
	at := fmt.Sprintf("/proc/self/fd/%d/", dir.Fd())
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: at + temp}); err != nil {
		return nil, err
	}
	err = errors.Join(os.Lchown(at+temp, uid, gid), os.Chmod(at+temp, mode))
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), name)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(at+temp))
	}
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	return u, nil
}
