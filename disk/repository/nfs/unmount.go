package nfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// close implements Repository.Close.
func (m *mount) close() error {
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	use := m.stop()
	if use == nil {
		return nil
	}
	defer release(use)
	_, err := m.leave(use)
	return err
}

// stop ends the use, as far as this process knows, and gives the file of its lock, nil without a use. turn is held.
func (m *mount) stop() *os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	use := m.use
	m.use = nil
	return use
}

// rest runs when the repository may have been idle for long. What cannot go yet it tries again after that time.
func (m *mount) rest() {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	default: // it is being mounted or unmounted just now
		m.again(m.idle)
		return
	}
	if left := m.idleLeft(); left > 0 {
		m.again(left)
		return
	}
	use := m.stop()
	if use == nil {
		return
	}
	if gone, err := m.leave(use); gone || err != nil {
		_ = release(use)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.use, m.timer = use, time.AfterFunc(m.idle, m.rest)
}

func (m *mount) idleLeft() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.idle - time.Since(m.last)
}

func (m *mount) again(after time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Reset(after)
	}
}

// leave unmounts when nobody else uses the mount, and reports whether it is gone. Otherwise use is locked as before.
// turn is held.
func (m *mount) leave(use *os.File) (gone bool, err error) {
	if info, err := os.Stat(m.dir + ".handed"); err == nil && time.Since(info.ModTime()) < m.grace {
		return false, nil
	}
	return m.clear(use)
}

// clear is leave also when a path was given away not long ago.
func (m *mount) clear(use *os.File) (gone bool, err error) {
	change, err := os.OpenFile(m.dir+".change", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	defer release(change)
	for _, f := range []*os.File{change, use} { // the shared lock becomes exclusive when nobody else has it
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if errors.Is(err, unix.EWOULDBLOCK) {
				return false, unix.Flock(int(use.Fd()), unix.LOCK_SH) // nobody has it exclusively without change
			}
			return false, err
		}
	}
	if _, err := m.find(); err != nil {
		return true, nil // or it is not ours
	}
	gone, err = m.unmount()
	if !gone && err == nil {
		err = unix.Flock(int(use.Fd()), unix.LOCK_SH)
	}
	return gone, err
}

// Sweep unmounts all that repositories of this host have mounted below Dir and nobody uses, also what was given away not long ago: for
// a host whose machines are all gone.
func Sweep() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mountsIn(string(text), Dir) {
		use, err := os.OpenFile(m.dir+".use", os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			_, err = m.clear(use)
			err = errors.Join(err, release(use))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mountsIn lists what is mounted in a directory of ours.
func mountsIn(text, dir string) []*mount {
	var found []*mount
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if ok && len(left) > 4 && len(right) > 1 && right[0] == "nfs4" && filepath.Dir(unescape(left[4])) == dir {
			found = append(found, &mount{source: unescape(right[1]), dir: unescape(left[4])})
		}
	}
	return found
}

// unmount takes the mount away unless a file of it is open. A server that is away keeps the kernel from it for a while:
// then it is left to the kernel, which does it later or not.
func (m *mount) unmount() (gone bool, err error) {
	done := make(chan error, 1)
	go func() { done <- unix.Unmount(m.dir, unix.UMOUNT_NOFOLLOW) }()
	timer := time.NewTimer(unmountLimit)
	defer timer.Stop()
	select {
	case err = <-done:
	case <-timer.C:
		return false, fault.Errorf(fault.Unavailable, "%s: unmounting %s has not ended after %v", m.source, m.dir, unmountLimit)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "unmount", Path: m.dir, Err: err}
	}
	_ = os.Remove(m.dir) // the files of locks stay: whoever has one open must meet others in it
	return true, nil
}
