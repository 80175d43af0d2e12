// Package recordfile keeps what a driver remembers of its domains, in files ID.json of its state directory. They are replaced at
// once and not synced: they are for domains that do not outlive a crash of the host either, and a crash of the process keeps what
// was renamed.
package recordfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const suffix = ".json"

func path(dir string, id int) string { return filepath.Join(dir, strconv.Itoa(id)+suffix) }

// part is what is being written; a crash leaves it.
func part(dir string, id int) string { return filepath.Join(dir, "."+strconv.Itoa(id)+".tmp") }

// Write makes r the record of a domain.
func Write[T any](dir string, id int, r T) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	err = os.WriteFile(part(dir, id), data, 0o600)
	if err == nil {
		err = os.Rename(part(dir, id), path(dir, id))
	}
	if err != nil {
		return errors.Join(err, remove(part(dir, id)))
	}
	return nil
}

// Remove removes a domain's record, if there is one.
func Remove(dir string, id int) error {
	return errors.Join(remove(part(dir, id)), remove(path(dir, id)))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Each calls f with all records of a state directory; of one that a crash of the host cut short it gives no more than that.
func Each[T any](dir string, f func(id int, r T, damaged error)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := strconv.Atoi(strings.TrimSuffix(e.Name(), suffix))
		if err != nil || e.Name() != filepath.Base(path(dir, id)) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		var r, none T
		if err := json.Unmarshal(data, &r); err != nil {
			f(id, none, fmt.Errorf("its record is damaged: %w", err))
			continue
		}
		f(id, r, nil)
	}
	return nil
}
