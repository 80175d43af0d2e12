package path

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// LinkIn implements repository.Linker. An object that is the same file already is fine.
func (r *Repository) LinkIn(ctx context.Context, file, name string) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return r.within(ctx, func(root *os.Root) error {
		if dir := path.Dir(name); dir != "." {
			if err := root.MkdirAll(dir, 0o750); err != nil {
				return r.object(name, err)
			}
		}
		err := unix.Linkat(unix.AT_FDCWD, file, unix.AT_FDCWD, r.filePath(name), 0)
		if errors.Is(err, fs.ErrExist) {
			if same(file, r.filePath(name)) {
				return nil
			}
		}
		if err != nil {
			removeEmptyParents(root, name)
			return r.object(name, linkError(err))
		}
		return r.object(name, syncDir(root, path.Dir(name)))
	})
}

// LinkOut implements repository.Linker.
func (r *Repository) LinkOut(ctx context.Context, name, file string) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return r.within(ctx, func(root *os.Root) error {
		if _, err := lstatFile(root, name); err != nil {
			return r.object(name, err)
		}
		err := unix.Linkat(unix.AT_FDCWD, r.filePath(name), unix.AT_FDCWD, file, 0)
		if errors.Is(err, fs.ErrExist) && same(file, r.filePath(name)) {
			return nil
		}
		return r.object(name, linkError(err))
	})
}

func same(a, b string) bool {
	fa, err1 := os.Lstat(a)
	fb, err2 := os.Lstat(b)
	return err1 == nil && err2 == nil && os.SameFile(fa, fb)
}

func linkError(err error) error {
	for _, no := range []error{unix.EXDEV, unix.EOPNOTSUPP, unix.EPERM, unix.EMLINK} {
		if errors.Is(err, no) {
			return fault.Errorf(fault.Unsupported, "cannot be linked: %w", err)
		}
	}
	return err
}
