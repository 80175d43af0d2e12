package qmp

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// throughDirectory calls fn with a short name for path: a socket address holds 108 bytes, a path may be
// longer, and a name below an open directory always fits.
func throughDirectory(path string, fn func(short string) error) error {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir)
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path)))
}

// DialSocket connects to the unix socket at path, however long path is.
func DialSocket(ctx context.Context, path string) (*net.UnixConn, error) {
	var conn net.Conn
	err := throughDirectory(path, func(short string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", short)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return conn.(*net.UnixConn), nil
}

// ListenSocket makes a listening unix socket at path, mode 0600, in place of what is there, and returns
// it as a file to hand to a process. Whoever connects waits until that process accepts.
func ListenSocket(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	var file *os.File
	err := throughDirectory(path, func(short string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		defer l.Close()
		if file, err = l.File(); err != nil {
			return err
		}
		return os.Chmod(short, 0o600)
	})
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return file, nil
}
