package nfs

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// close implements Repository.Close.
func (m *mount) close() error {
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	return m.leave(m.stop(0))
}

// rest runs when the repository may have been idle for long.
func (m *mount) rest() {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
		_ = m.leave(m.stop(m.idle)) // the next use begins anew
	default: // it is being mounted or unmounted just now
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.timer != nil {
			m.timer.Reset(m.idle)
		}
	}
}

// stop ends the use if there was none for so long, and gives the file of its lock; nil when it goes on. turn is held.
func (m *mount) stop(idle time.Duration) *os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	if left := idle - time.Since(m.last); idle > 0 && left > 0 && m.use != nil && m.timer != nil {
		m.timer.Reset(left)
		return nil
	}
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	use := m.use
	m.use = nil
	return use
}

// leave lets the lock of the use go, and unmounts where it was the last one. turn is held.
func (m *mount) leave(use *os.File) error {
	if use == nil {
		return nil
	}
	defer use.Close()
	if info, err := os.Stat(m.dir + ".handed"); err == nil && time.Since(info.ModTime()) < m.grace {
		return nil
	}
	change, err := os.OpenFile(m.dir+".change", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer change.Close()
	for _, f := range []*os.File{change, use} { // ours becomes exclusive when nobody has it with us
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil
			}
			return err
		}
	}
	if _, err := m.find(); err != nil {
		return nil
	}
	return m.unmount()
}

// unmount takes the mount away unless a file of it is open. A server that is away keeps the kernel from it for a while:
// then it is left to the kernel, which does it later or not.
func (m *mount) unmount() error {
	done := make(chan error, 1)
	go func() { done <- unix.Unmount(m.dir, unix.UMOUNT_NOFOLLOW) }()
	timer := time.NewTimer(unmountLimit)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return &os.PathError{Op: "unmount", Path: m.dir, Err: err}
		}
		if err == nil {
			_ = os.Remove(m.dir) // the files of locks stay: whoever has one open must meet others in it
		}
		return nil
	case <-timer.C:
		return nil
	}
}
