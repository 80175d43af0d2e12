package path

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// mark is the file beside an object in use as a persistent image: who uses it, and what it goes back to. Marks
// of before there were generations have 0.
type mark struct {
	repository.Mark
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	Mode uint32 `json:"mode"`
}

const markSuffix = ".owner"

func readMark(root *os.Root, name string) (mark, error) {
	var m mark
	text, err := root.ReadFile(hidden(name, markSuffix))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fault.Errorf(fault.Corrupt, "owner's mark: %w", err)
	}
	return m, nil
}

// Own implements repository.Ownable.
func (r *Repository) Own(ctx context.Context, name string, owner repository.Owner, uid, gid int) (string, error) {
	if err := repository.CheckName(name); err != nil {
		return "", err
	}
	err := r.within(ctx, func(root *os.Root) error { return r.object(name, own(root, name, owner, uid, gid)) })
	if err != nil {
		return "", err
	}
	return r.handed(name), nil
}

func own(root *os.Root, name string, owner repository.Owner, uid, gid int) error {
	fi, err := lstatFile(root, name)
	if err != nil {
		return err
	}
	// Whoever finds the name locked has come second: no reason to wait.
	lock, err := lockName(root, name)
	if err != nil {
		return err
	}
	defer unlockName(root, name, lock)
	m, err := readMark(root, name)
	switch {
	case err == nil && m.Owner != owner:
		return m.Busy()
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		st := fi.Sys().(*syscall.Stat_t)
		m = mark{repository.Mark{Owner: owner, Generation: generation(st)}, int(st.Uid), int(st.Gid), uint32(fi.Mode().Perm())}
		if err := writeMark(root, name, m, true); err != nil {
			return err
		}
	default:
		return err
	}
	if err := root.Lchown(name, uid, gid); err != nil {
		return errors.Join(err, giveBack(root, name, m))
	}
	return root.Chmod(name, 0o600)
}

// generation is the time of the taking in nanoseconds. A taking changes the object's rights, and so its time of
// change: a clock that was set back does not make a generation come twice.
func generation(st *syscall.Stat_t) uint64 {
	return uint64(max(time.Now().UnixNano(), st.Ctim.Nano()+1))
}

// writeMark puts the whole mark in place at once; fault.Busy when it is to be the first and another is there. The
// caller holds the name's lock, as far as it knows: see publish.
func writeMark(root *os.Root, name string, m mark, first bool) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	part := hidden(name, markSuffix+".part")
	if err := root.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a host that died
		return err
	}
	f, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync()); err == nil && first {
		err = publish(root, f, part, hidden(name, markSuffix))
		if fault.Is(err, fault.Exists) {
			err = fault.Errorf(fault.Busy, "was taken by another owner just now")
		}
	} else if err == nil {
		err = root.Rename(part, hidden(name, markSuffix))
	}
	if err != nil {
		return errors.Join(err, removeOwn(root, part, f))
	}
	return syncDir(root, path.Dir(name))
}

// Disown implements repository.Ownable. It is fault.WrongState while the owner has undrained writes: the mark
// is all that keeps others from an image that lacks them.
func (r *Repository) Disown(ctx context.Context, name string, owner repository.Owner) error {
	return r.locked(ctx, name, func(root *os.Root) error {
		m, err := readMark(root, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case m.Owner != owner:
			return nil
		case m.Undrained:
			return fault.Errorf(fault.WrongState, "persistent, machine %d on host %s has writes that are not here yet", m.Machine, m.Host)
		}
		return giveBack(root, name, m)
	})
}

// giveBack restores the ownership of before the taking and removes the mark. The caller holds the name's lock.
func giveBack(root *os.Root, name string, m mark) error {
	err := errors.Join(root.Lchown(name, m.UID, m.GID), root.Chmod(name, fs.FileMode(m.Mode)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Remove(hidden(name, markSuffix)); err != nil {
		return err
	}
	return syncDir(root, path.Dir(name))
}

const (
	lockLimit = 45 * time.Second // nobody changes a mark for so long, and less than defaultLimit
	lockPoll  = 5 * time.Millisecond
)

// locked runs f with the object's name locked, after waiting for those who change its mark.
func (r *Repository) locked(ctx context.Context, name string, f func(root *os.Root) error) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return r.within(ctx, func(root *os.Root) error { return r.object(name, withLock(ctx, root, name, f)) })
}

func withLock(ctx context.Context, root *os.Root, name string, f func(root *os.Root) error) error {
	limit := time.NewTimer(lockLimit)
	defer limit.Stop()
	poll := time.NewTicker(lockPoll)
	defer poll.Stop()
	for {
		lock, err := lockName(root, name)
		if err == nil {
			defer unlockName(root, name, lock)
			return f(root)
		}
		if !fault.Is(err, fault.Busy) {
			if _, missing := root.Lstat(path.Dir(name)); errors.Is(err, fs.ErrNotExist) && errors.Is(missing, fs.ErrNotExist) {
				return f(root) // nothing there that could be locked: f says what that means
			}
			return err
		}
		select {
		case <-poll.C:
		case <-limit.C:
			return fault.Errorf(fault.Unavailable, "its mark has been locked for %v", lockLimit)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
