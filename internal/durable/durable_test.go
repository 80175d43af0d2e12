package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func content(t *testing.T, path string) (string, fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(path)
	fi, failed := os.Stat(path)
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return string(b), fi.Mode()
}

// only fails when anything but the named files is in a directory.
func only(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(names) {
		t.Fatalf("%v instead of %q, %v", entries, names, err)
	}
	for i, e := range entries {
		if e.Name() != names[i] {
			t.Errorf("%s instead of %s", e.Name(), names[i])
		}
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	for _, c := range []struct {
		text string
		mode fs.FileMode
	}{{"first", 0o400}, {"", 0o666}, {"third", 0o600}} {
		if err := WriteFile(path, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if text, mode := content(t, path); text != c.text || mode != c.mode {
			t.Errorf("%q %v", text, mode)
		}
	}
	only(t, dir, "a")
	if err := WriteFile(filepath.Join(dir, "missing", "a"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "b"), []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	only(t, dir, "a", "b")
}

func TestWriteNew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := WriteNew(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteNew(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if text, mode := content(t, path); text != "first" || mode != 0o600 {
		t.Errorf("%q %v", text, mode)
	}
	only(t, dir, "a")
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	dir = filepath.Join(dir, "odd [a-z]*")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a")
	if err := WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".a"+PartMark+"77"), nil, 0o600); err != nil { // as a crash leaves it
		t.Fatal(err)
	}
	for range 2 { // the second does nothing
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}
	only(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "full", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Remove(filepath.Join(dir, "full")); err == nil {
		t.Error("a full directory was removed")
	}
	if err := SyncDir(filepath.Join(dir, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "of *")
	if err := Sweep(dir); err != nil {
		t.Errorf("a directory that is not there: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", ".a" + PartMark + "1", ".b" + PartMark + "22", "c" + PartMark + "3"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 || left[0].Name() != "a" || left[1].Name() != "c"+PartMark+"3" {
		t.Errorf("left %v, %v", left, err)
	}
}
