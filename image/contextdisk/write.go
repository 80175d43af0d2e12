package contextdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/durable"
	"hayloft/internal/undo"
)

// Write makes an image of the files at path with the given permissions, all at once: a crash or an error leaves
// what was there before.
func Write(ctx context.Context, path string, files map[string][]byte, mode os.FileMode) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	image, err := Image(files, time.Now())
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := durable.WriteFile(path, image, mode); err != nil {
		return fmt.Errorf("context disk %s: %w", path, err)
	}
	return nil
}

// WriteDirectory puts the files into a directory of their own, for containers. Directory and files belong to uid
// and gid and nobody else can read them. A directory that is there already is replaced as a whole; a crash leaves
// the old or the new one.
func WriteDirectory(dir string, files map[string][]byte, uid, gid int) error {
	for name := range files {
		if err := checkName(name); err != nil {
			return err
		}
	}
	var steps undo.Stack
	temporary, err := os.MkdirTemp(filepath.Dir(dir), ".context-*")
	if err != nil {
		return fmt.Errorf("context directory %s: %w", dir, err)
	}
	steps.Push(func() error { return os.RemoveAll(temporary) })
	err = fill(temporary, files, uid, gid)
	if err == nil {
		err = swapIn(temporary, dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("context directory %s: %w", dir, err), steps.Run())
	}
	return durable.SyncDir(filepath.Dir(dir))
}

func fill(dir string, files map[string][]byte, uid, gid int) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := writeFile(filepath.Join(dir, name), files[name], uid, gid); err != nil {
			return err
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

func writeFile(path string, content []byte, uid, gid int) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Chown(uid, gid)
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// swapIn gives the new directory its name, and removes what had it before.
func swapIn(fresh, dir string) error {
	err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Rename(fresh, dir)
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(fresh)
}
