package recordfile

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type record struct{ Name string }

func TestRecords(t *testing.T) {
	dir := t.TempDir()
	for id, name := range map[int]string{3: "first", 12: "other"} {
		if err := Write(dir, id, record{name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Write(dir, 3, record{"second"}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"7.json": `{"Name": "cut sh`, "007.json": "{}", "x.json": "{}", "8.json.bak": "{}", ".9.tmp": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found := map[int]string{}
	err := Each(dir, func(id int, r record, damaged error) {
		found[id] = r.Name
		if damaged != nil {
			if r != (record{}) || !strings.Contains(damaged.Error(), "damaged") {
				t.Errorf("%+v, %v", r, damaged)
			}
			found[id] = "damaged"
		}
	})
	if want := map[int]string{3: "second", 7: "damaged", 12: "other"}; err != nil || !maps.Equal(found, want) {
		t.Errorf("%v, %v; want %v", found, err, want)
	}
	for _, id := range []int{3, 9, 100} {
		if err := Remove(dir, id); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"3.json", ".9.tmp", ".3.tmp"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is there yet", name)
		}
	}
}

func TestFailures(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "5.json", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, 5, record{}); err == nil {
		t.Error("a directory was replaced")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "5.json" }) || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := Remove(dir, 5); err == nil {
		t.Error("a directory was removed")
	}
	if err := Each(filepath.Join(dir, "none"), func(int, record, error) {}); err == nil {
		t.Error("a directory that is not there")
	}
}
