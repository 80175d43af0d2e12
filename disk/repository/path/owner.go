package path

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"syscall"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// mark is the file beside an object in use as a persistent image: who uses it, and what it goes back to.
type mark struct {
	repository.Owner
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
	return r.filePath(name), nil
}

func own(root *os.Root, name string, owner repository.Owner, uid, gid int) error {
	fi, err := lstatFile(root, name)
	if err != nil {
		return err
	}
	m, err := readMark(root, name)
	switch {
	case err == nil && m.Owner != owner:
		return fault.Errorf(fault.Busy, "persistent, in use by machine %d on host %s", m.Machine, m.Host)
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		st := fi.Sys().(*syscall.Stat_t)
		if err := writeMark(root, name, mark{owner, int(st.Uid), int(st.Gid), uint32(fi.Mode().Perm())}); err != nil {
			return err
		}
	default:
		return err
	}
	if err := root.Lchown(name, uid, gid); err != nil {
		return errors.Join(err, disown(root, name, owner))
	}
	return root.Chmod(name, 0o600)
}

// writeMark puts the whole mark in place at once, or fails because another one came first.
func writeMark(root *os.Root, name string, m mark) error {
	lock, err := lockName(root, name)
	if err != nil {
		return err
	}
	defer unlockName(root, name, lock)
	if other, err := readMark(root, name); err == nil {
		return fault.Errorf(fault.Busy, "persistent, in use by machine %d on host %s", other.Machine, other.Host)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	part := hidden(name, markSuffix+".part")
	f, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, root.Remove(part))
	}
	if err := root.Rename(part, hidden(name, markSuffix)); err != nil {
		return err
	}
	return syncDir(root, path.Dir(name))
}

// Disown implements repository.Ownable.
func (r *Repository) Disown(ctx context.Context, name string, owner repository.Owner) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return r.within(ctx, func(root *os.Root) error { return r.object(name, disown(root, name, owner)) })
}

func disown(root *os.Root, name string, owner repository.Owner) error {
	m, err := readMark(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Owner != owner {
		return nil
	}
	err = errors.Join(root.Lchown(name, m.UID, m.GID), root.Chmod(name, fs.FileMode(m.Mode)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Remove(hidden(name, markSuffix)); err != nil {
		return err
	}
	return syncDir(root, path.Dir(name))
}
