package ssh

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/lab/sshlab"
)

// TestReadingWithSFTPAlone: a login that may run nothing else.
func TestReadingWithSFTPAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a", []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := open(t, sshlab.Start(t, "ForceCommand internal-sftp"), dir)
	src, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if b, err := io.ReadAll(io.NewSectionReader(src, 0, src.Size())); err != nil || string(b) != "hello" {
		t.Errorf("%q %v", b, err)
	}
	_, err = r.Create(t.Context(), "d/b")
	class(t, "create", err, fault.Unsupported, "run no programs")
	if got := files(t, dir); got != "a" {
		t.Errorf("left: %s", got)
	}
}

// TestOddNames: no name is more than a name to the other host's shell.
func TestOddNames(t *testing.T) {
	dir := t.TempDir()
	r := open(t, sshlab.Start(t), dir)
	for _, name := range []string{"it's $(touch x) `id`; exit", `"*?[a]~%s%n -n`, "ü -rf/b --help"} {
		put(t, r, name, []byte(name))
		w, _, err := r.CreateFrom(t.Context(), name, "clone of/"+name)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{name, "clone of/" + name} {
			if b, err := os.ReadFile(dir + "/" + n); err != nil || string(b) != name {
				t.Errorf("%q %v", b, err)
			}
			if err := r.Delete(t.Context(), n); err != nil {
				t.Error(err)
			}
		}
	}
	if got := files(t, dir); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestLinksDoNotLeadOut: a link somebody put into the directory is not followed.
func TestLinksDoNotLeadOut(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.WriteFile(outside+"/secret", []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Symlink(outside+"/secret", dir+"/a")
	_ = os.Symlink(outside, dir+"/d")
	_ = unix.Mkfifo(dir+"/pipe", 0o600)
	r := open(t, sshlab.Start(t), dir)
	for _, name := range []string{"a", "d/secret", "pipe"} {
		if src, err := r.Open(t.Context(), name); err == nil {
			src.Close()
			t.Errorf("opened %s", name)
		}
	}
	if _, err := r.Create(t.Context(), "d/x"); err == nil {
		t.Error("wrote through a link")
	}
	if list, err := r.List(t.Context(), ""); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}
