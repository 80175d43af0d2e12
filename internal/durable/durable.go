// Package durable changes files so that a crash leaves the old or the new state, and what was changed is on the disk
// when a call returns.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// PartMark is in the names, which begin with a dot, of files that are being written; a crash leaves them.
const PartMark = ".part-"

// WriteFile makes content the file at path, with the permissions mode whatever the umask is, in place of one that is
// there. After an error it is the old one, except when only the directory could not be synced.
func WriteFile(path string, content []byte, mode fs.FileMode) error {
	return write(path, content, mode, os.Rename)
}

// WriteNew is WriteFile for a file that must not be there: fs.ErrExist.
func WriteNew(path string, content []byte, mode fs.FileMode) error {
	return write(path, content, mode, func(part, path string) error {
		if err := os.Link(part, path); err != nil {
			return err
		}
		return os.Remove(part)
	})
}

func write(path string, content []byte, mode fs.FileMode, publish func(part, path string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+PartMark)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = errors.Join(f.Chmod(mode), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = publish(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(dir)
}

// Sweep removes what crashes left of writing any file of a directory, which may not be there. Nobody may be writing in it.
func Sweep(dir string) error {
	parts, err := filepath.Glob(filepath.Join(literal.Replace(dir), ".*"+PartMark+"*"))
	for _, part := range parts {
		err = errors.Join(err, os.Remove(part))
	}
	return err
}

// Remove removes the file at path, if there is one, and what crashes left of writing it.
func Remove(path string) error {
	parts, err := filepath.Glob(filepath.Join(literal.Replace(filepath.Dir(path)), literal.Replace("."+filepath.Base(path)+PartMark)+"*"))
	if err != nil {
		return err
	}
	for _, part := range parts {
		if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Also of one that is gone: who removed it may have died before that was durable.
	if err := SyncDir(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// literal makes text a pattern of itself.
var literal = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Rename moves a file or directory, whose content is durable, to another name in the same directory.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}
