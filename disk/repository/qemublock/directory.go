package qemublock

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Unprivileged user ids for children, each its own: a range that no distribution assigns (see UIDS-GIDS of systemd).
const (
	firstUID = 0x7e000000
	uids     = 1 << 20
)

const dirPrefix = "hayloft-qemublock-"

const tries = 20 // to have a directory before another one's sweep has it

// private is a directory that only one child and its owner can enter. It is locked for as long as its owner lives, so
// that what a killed one left can be told from what is in use.
type private struct {
	path string
	lock *os.File
	uid  int // of the child; -1: our own
}

// place is a directory that children can pass through.
func place() string {
	if os.Geteuid() == 0 {
		if _, err := os.Stat("/run"); err == nil {
			return "/run"
		}
	}
	return os.TempDir()
}

func newPrivate(in string) (*private, error) {
	sweep(in)
	for range tries {
		path, err := os.MkdirTemp(in, dirPrefix)
		if err != nil {
			return nil, err
		}
		lock, err := lockDir(path)
		if err != nil { // another one's sweep was faster
			_ = os.RemoveAll(path)
			continue
		}
		p := &private{path: path, lock: lock, uid: -1}
		if os.Geteuid() == 0 {
			p.uid = firstUID + rand.IntN(uids)
			err = os.Chown(path, p.uid, p.uid)
		}
		if err != nil {
			return nil, errors.Join(err, p.remove())
		}
		return p, nil
	}
	return nil, errors.New("no private directory to be had in " + in)
}

func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = still(path, f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// still is an error when path is not what f is any more: who had the lock before has removed it.
func still(path string, f *os.File) error {
	opened, err := f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(path)
	if err == nil && !os.SameFile(opened, there) {
		err = os.ErrNotExist
	}
	return err
}

func (p *private) remove() error {
	err := os.RemoveAll(p.path)
	return errors.Join(err, p.lock.Close())
}

// sweep removes directories of processes that died.
func sweep(in string) {
	dirs, _ := filepath.Glob(filepath.Join(in, dirPrefix+"*"))
	for _, dir := range dirs {
		if lock, err := lockDir(dir); err == nil {
			_ = os.RemoveAll(dir)
			lock.Close()
		}
	}
}
