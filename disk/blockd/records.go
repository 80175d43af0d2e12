package blockd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"hayloft/internal/durable"
)

const recordSuffix = ".json"

// records keeps values of one kind, each in a file of its own.
type records[T any] struct{ dir string }

func (r records[T]) put(name string, value T) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(r.dir, name+recordSuffix), append(text, '\n'), 0o600)
}

func (r records[T]) remove(name string) error {
	return durable.Remove(filepath.Join(r.dir, name+recordSuffix))
}

// all makes the directory when it is missing, and removes what a crash left half-written. A record that cannot be read is told to bad, and kept.
func (r records[T]) all(bad func(file string, err error)) ([]T, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var list []T
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			_ = os.Remove(path)
			continue
		}
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		var value T
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &value)
		}
		if err != nil {
			bad(path, err)
			continue
		}
		list = append(list, value)
	}
	return list, nil
}
