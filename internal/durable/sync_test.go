package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"hayloft/internal/durable"
	"hayloft/internal/durable/durabletest"
	"hayloft/lab/labtest"
)

// What a call changed is on the disk when it returns, names too, also when it finds done what a crash left undurable.
func TestNamesAreSynced(t *testing.T) {
	labtest.Root(t)
	dir, w := durabletest.Watch(t)
	path := filepath.Join(dir, "a")
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"a new file", func() error { return durable.WriteNew(path, []byte("x"), 0o600) }},
		{"a file that is replaced", func() error { return durable.WriteFile(path, []byte("y"), 0o600) }},
		{"a file that is removed", func() error { return durable.Remove(path) }},
		{"another that was removed by a process that died", func() error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			if err := os.Remove(path); err != nil {
				return err
			}
			return durable.Remove(path)
		}},
		{"a rename", func() error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return durable.Rename(path, path+"2")
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatal(step.what, err)
		}
		if left := w.Unsynced(); len(left) > 0 {
			t.Errorf("%s: %q is not durable", step.what, left)
		}
	}
	if err := durable.Remove(filepath.Join(dir, "nowhere", "a")); err != nil {
		t.Error(err)
	}
}
