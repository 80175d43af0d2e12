package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/version"

	"hayloft/cloud/fault"
	"hayloft/internal/lockfile"
)

// lockDir makes the data directory and takes it for this process until the returned file is closed.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd data directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("etcd data directory: %w", err)
	}
	if err = lockfile.Take(context.Background(), lock, 0); err == nil {
		err = writeOwner(lock)
	} else if fault.Is(err, fault.Busy) {
		err = fault.Errorf(fault.Busy, "etcd data directory %s is in use by process %s", dir, owner(lock))
	} else {
		err = fmt.Errorf("etcd data directory: %w", err)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// writeOwner notes the process for whoever finds the directory locked.
func writeOwner(lock *os.File) error {
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func owner(lock *os.File) string {
	text := make([]byte, 20)
	n, _ := lock.ReadAt(text, 0)
	if pid := string(bytes.TrimSpace(text[:n])); pid != "" {
		return pid
	}
	return "(unknown)"
}

// inspect refuses a database that etcd would hang on (locked by a process that does not know our lock),
// die of (damaged) or misread (written by a newer etcd).
func inspect(dir string) (err error) {
	path := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	defer func() {
		if reason := recover(); reason != nil {
			err = fault.Errorf(fault.Corrupt, "etcd database %s: %v", path, reason)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: 200 * time.Millisecond})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fault.Errorf(fault.Busy, "etcd data directory %s is in use by another etcd", dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("etcd database: %w", err)
	case err != nil:
		return fault.Errorf(fault.Corrupt, "etcd database %s: %w", path, err)
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		// etcd server, storage/schema: the schema's version is under this key since 3.6.
		meta := tx.Bucket([]byte("meta"))
		if meta == nil {
			return nil
		}
		written := string(meta.Get([]byte("storageVersion")))
		if newer(written, version.Version) {
			return fault.Errorf(fault.Unsupported, "etcd data in %s is of version %s, newer than this program's %s",
				dir, written, version.Version)
		}
		return nil
	})
}

// newer compares major and minor numbers; what cannot be read is not newer.
func newer(written, own string) bool {
	w, o := numbers(written), numbers(own)
	return w[0] > o[0] || w[0] == o[0] && w[1] > o[1]
}

func numbers(v string) (n [2]int) {
	for i, part := range strings.SplitN(v, ".", 3) {
		if i < 2 {
			n[i], _ = strconv.Atoi(part)
		}
	}
	return n
}
