package ssh

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// mark is the file beside an object in use as a persistent image, as driver path has it, and the connection that
// writes to it.
type mark struct {
	repository.Mark
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
	Mode    uint32 `json:"mode"`
	Session string `json:"session,omitempty"` // see identify; "": none
}

const (
	markSuffix = ".owner"
	maxMark    = 64 << 10
)

func (r *Repository) readMark(l *link, name string) (mark, error) {
	var m mark
	f, err := l.files.Open(r.file(hidden(name, markSuffix)))
	if err != nil {
		return m, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMark))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fault.Errorf(fault.Corrupt, "owner's mark: %w", err)
	}
	return m, nil
}

// writeMark puts the whole mark in place at once. The caller holds the name's lock.
func (r *Repository) writeMark(l *link, name string, m mark) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	part := r.file(hidden(name, markSuffix+".part"))
	f, err := l.files.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return r.full(l, err, len(text))
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o600), l.sync(f), f.Close()); err != nil {
		return errors.Join(r.full(l, err, len(text)), l.files.Remove(part))
	}
	if err := l.files.PosixRename(part, r.file(hidden(name, markSuffix))); err != nil {
		return err
	}
	return r.syncDir(l, name)
}

// Own implements repository.Ownable. There is no path: the hypervisor gets at the object through this driver alone,
// so it stays the login's own, and uid and gid mean nothing on the other host.
func (r *Repository) Own(ctx context.Context, name string, owner repository.Owner, _, _ int) (string, error) {
	if err := repository.CheckName(name); err != nil {
		return "", err
	}
	ctx, done := r.noting(ctx, "taking", name)
	defer done()
	var began atomic.Bool
	return "", r.again(ctx, r.limits.mark, func(l *link) error {
		patience := time.Duration(0) // whoever finds the name locked has come second: no reason to wait
		if began.Swap(true) {
			patience = lockLimit // for what we held on the connection that was lost
		}
		return r.object(l, name, r.own(ctx, l, name, owner, patience))
	})
}

func (r *Repository) own(ctx context.Context, l *link, name string, owner repository.Owner, patience time.Duration) (err error) {
	fi, err := r.lstat(l, name)
	if err != nil {
		return err
	}
	held, err := r.lockNames(ctx, "", name, name)
	for limit := time.Now().Add(patience); fault.Is(err, fault.Busy) && time.Now().Before(limit) && ctx.Err() == nil; {
		time.Sleep(lockPoll)
		held, err = r.lockNames(ctx, "", name, name)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.release()) }()
	m, err := r.readMark(l, name)
	switch {
	case err == nil && m.Owner != owner:
		return m.Busy()
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		st, ok := fi.Sys().(*sftp.FileStat)
		if !ok || held.changed.IsZero() {
			return fault.Errorf(fault.NotFound, "was deleted meanwhile")
		}
		m = mark{Mark: repository.Mark{Owner: owner, Generation: held.generation()}, UID: int(st.UID), GID: int(st.GID), Mode: uint32(fi.Mode().Perm())}
		if err := r.writeMark(l, name, m); err != nil {
			return err
		}
	default:
		return err
	}
	if err := l.files.Chmod(r.file(name), 0o600); err != nil {
		return errors.Join(err, r.giveBack(l, name, m))
	}
	return nil
}

// generation is the storage server's time of the taking in nanoseconds. A taking changes the object's rights, and so
// its time of change: a clock that was set back does not make a generation come twice.
func (l *lock) generation() uint64 {
	return max(l.now, uint64(max(0, l.changed.UnixNano()))+1)
}

// Disown implements repository.Ownable. It is fault.WrongState while the owner has undrained writes.
func (r *Repository) Disown(ctx context.Context, name string, owner repository.Owner) error {
	ctx, done := r.noting(ctx, "giving back", name)
	defer done()
	return r.locked(ctx, r.limits.mark, name, func(l *link) error {
		m, err := r.readMark(l, name)
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
		return r.giveBack(l, name, m)
	})
}

// giveBack restores the rights of before the taking and removes the mark. The caller holds the name's lock.
func (r *Repository) giveBack(l *link, name string, m mark) error {
	fi, err := l.files.Lstat(r.file(name))
	if err == nil {
		st, ok := fi.Sys().(*sftp.FileStat)
		if ok && (int(st.UID) != m.UID || int(st.GID) != m.GID) { // taken through driver path
			err = l.files.Chown(r.file(name), m.UID, m.GID)
		}
		err = errors.Join(err, l.files.Chmod(r.file(name), fs.FileMode(m.Mode)))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.files.Remove(r.file(hidden(name, markSuffix))); err != nil {
		return err
	}
	return r.syncDir(l, name)
}

// Marked implements repository.Writable.
func (r *Repository) Marked(ctx context.Context, name string) (repository.Mark, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Mark{}, err
	}
	ctx, done := r.noting(ctx, "asking who owns", name)
	defer done()
	found := make(chan repository.Mark, 2)
	err := r.again(ctx, r.limits.answer, func(l *link) error {
		m, err := r.readMark(l, name)
		if err == nil {
			found <- m.Mark
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = fault.Errorf(fault.NotFound, "nobody owns it")
		}
		return r.object(l, name, err)
	})
	if err != nil {
		return repository.Mark{}, err
	}
	return <-found, nil
}

// SetUndrained implements repository.Writable.
func (r *Repository) SetUndrained(ctx context.Context, name string, owner repository.Owner, generation uint64, undrained bool) error {
	return r.locked(ctx, r.limits.mark, name, func(l *link) error {
		m, err := r.held(l, name, owner, generation)
		if err != nil || m.Undrained == undrained {
			return err
		}
		m.Undrained = undrained
		return r.writeMark(l, name, m)
	})
}

// held reads the mark and refuses when it is not that of owner and generation.
func (r *Repository) held(l *link, name string, owner repository.Owner, generation uint64) (mark, error) {
	m, err := r.readMark(l, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, fault.Errorf(fault.Busy, "was taken from machine %d on host %s", owner.Machine, owner.Host)
	case err != nil:
		return m, err
	case m.Owner != owner:
		return m, m.Busy()
	case m.Generation != generation:
		return m, fault.Errorf(fault.Busy, "was taken again: generation %d is over, it is %d now", generation, m.Generation)
	}
	return m, nil
}

// Break implements repository.Writable. An object that nobody owns is fine. The connection of the owner that still
// writes, if there is one, is ended.
func (r *Repository) Break(ctx context.Context, name string, acceptStale bool) error {
	ctx, done := r.noting(ctx, "giving back", name)
	defer done()
	return r.locked(ctx, r.limits.mark, name, func(l *link) error {
		m, err := r.readMark(l, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil && !(acceptStale && fault.Is(err, fault.Corrupt)):
			return err
		case err != nil: // nobody can tell any more whose it is
			return errors.Join(l.files.Remove(r.file(hidden(name, markSuffix))), r.syncDir(l, name))
		case m.Undrained && !acceptStale:
			return m.Busy()
		}
		if err := r.endFormer(ctx, l, m.Session); err != nil {
			return err
		}
		return r.giveBack(l, name, m)
	})
}

// endFormer ends the connection that a mark names, unless it is this one.
func (r *Repository) endFormer(ctx context.Context, l *link, session string) error {
	if session == "" {
		return nil
	}
	ours, err := r.identify(ctx, l)
	if err != nil || sameSession(ours, session) {
		return err
	}
	return r.endSession(ctx, session)
}
