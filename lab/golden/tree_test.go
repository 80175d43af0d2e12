package golden

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTreeRefusesConflicts(t *testing.T) {
	cases := []struct {
		name string
		add  func(*tree) error
		want string
	}{
		{"same file twice", func(t *tree) error { return t.file("a/b", 0o644, nil) }, "twice"},
		{"file over directory", func(t *tree) error { return t.file("a", 0o644, nil) }, "twice"},
		{"file below file", func(t *tree) error { return t.file("a/b/c", 0o644, nil) }, "not a directory"},
		{"file below link", func(t *tree) error { return t.file("l/c", 0o644, nil) }, "not a directory"},
		{"directory again", func(t *tree) error { return t.dir("a", 0o700) }, ""},
		{"climbing out stays inside", func(t *tree) error { return t.file("../../x", 0o644, nil) }, ""},
	}
	for _, c := range cases {
		tree := newTree()
		if err := tree.file("a/b", 0o644, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := tree.link("l", "/etc"); err != nil {
			t.Fatal(err)
		}
		err := c.add(tree)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestStageNeverWritesThroughLinks(t *testing.T) {
	host := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(host, []byte("host"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(host, filepath.Join(dir, "init")); err != nil {
		t.Fatal(err)
	}
	tree := newTree()
	if err := tree.file("init", 0o755, []byte("guest")); err != nil {
		t.Fatal(err)
	}
	if err := tree.stage(dir); err == nil {
		t.Error("staged over a link without an error")
	}
	if got, err := os.ReadFile(host); err != nil || string(got) != "host" {
		t.Errorf("the host's file is now %q, %v", got, err)
	}
}
