package ssh

import (
	"os"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/path"
	"hayloft/lab/sshlab"
)

var (
	ownerOne = repository.Owner{Host: "h1", Machine: 1}
	ownerTwo = repository.Owner{Host: "h2", Machine: 2}
)

func byPath(t *testing.T, dir string) *path.Repository {
	t.Helper()
	r, err := path.New(disk.Repository{ID: 8, Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTwoHostsOneName: hosts that come by SSH, and the storage server itself, exclude each other.
func TestTwoHostsOneName(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	hosts := []repository.Repository{open(t, s, dir), open(t, s, dir), byPath(t, dir)}
	for i, one := range hosts {
		for k, other := range hosts {
			if i == k {
				continue
			}
			w, err := one.Create(t.Context(), "d/a")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt([]byte("one"), 0); err != nil {
				t.Fatal(err)
			}
			_, err = other.Create(t.Context(), "d/a")
			class(t, "the other host", err, fault.Busy)
			if err := other.(repository.Sweeper).Sweep(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(t.Context()); err != nil {
				t.Fatalf("%d, swept by %d: %v", i, k, err)
			}
			_, err = other.Create(t.Context(), "d/a")
			class(t, "the other host afterwards", err, fault.Exists)
			if err := other.Delete(t.Context(), "d/a"); err != nil {
				t.Error(err)
			}
			if got := files(t, dir); got != "" {
				t.Fatalf("%d, %d: left: %s", i, k, got)
			}
		}
	}
}

// TestLostLock: a host that is cut off has lost the name; what it tries later comes to nothing.
func TestLostLock(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	w, err := open(t, s, dir).Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	s.KillConnections()
	next := open(t, s, dir)
	eventually(t, "the lock", func() bool {
		w, err := next.Create(t.Context(), "a")
		if err == nil {
			defer w.Abort()
			_, err = w.WriteAt([]byte("next"), 0)
		}
		if err == nil {
			err = w.Commit(t.Context())
		}
		return err == nil
	})
	if err := w.Commit(t.Context()); err == nil {
		t.Error("committed without the lock")
	}
	if b, err := os.ReadFile(dir + "/a"); err != nil || string(b) != "next" {
		t.Errorf("%q %v", b, err)
	}
}

// TestCommitNeverReplaces: not even when the name was taken by somebody who knows of no locks.
func TestCommitNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	w, err := open(t, sshlab.Start(t), dir).Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/a", []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	class(t, "commit", w.Commit(t.Context()), fault.Exists)
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(dir + "/a"); err != nil || string(b) != "other" || files(t, dir) != "a" {
		t.Errorf("%q %v, %s", b, err, files(t, dir))
	}
}

// TestMarksAreShared: who owns an image is the same for both drivers.
func TestMarksAreShared(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	far, near := open(t, s, dir), byPath(t, dir)
	put(t, far, "p", []byte("content"))
	for _, pair := range [][2]repository.Writable{{far, near}, {near, far}} {
		one, other := pair[0], pair[1]
		if _, err := one.Own(t.Context(), "p", ownerOne, os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
		mark, err := one.Marked(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		if m, err := other.Marked(t.Context(), "p"); err != nil || m != mark {
			t.Error(m, err)
		}
		_, err = other.Own(t.Context(), "p", ownerTwo, os.Getuid(), os.Getgid())
		class(t, "own another's", err, fault.Busy, "machine 1 on host h1")
		if err := one.SetUndrained(t.Context(), "p", ownerOne, mark.Generation, true); err != nil {
			t.Fatal(err)
		}
		class(t, "break undrained", other.Break(t.Context(), "p", false), fault.Busy)
		if err := other.Break(t.Context(), "p", true); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(dir + "/p")
		if err != nil || fi.Mode().Perm() != 0o640 {
			t.Error(fi.Mode(), err)
		}
		class(t, "a generation that is over", one.SetUndrained(t.Context(), "p", ownerOne, mark.Generation, false), fault.Busy)
	}
	if got := files(t, dir); got != "p" {
		t.Errorf("left: %s", got)
	}
}

// TestLateWrites: what a lost connection still has under way does not come over what is written later.
func TestLateWrites(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	for _, two := range [][2]*Repository{{open(t, s, dir), open(t, s, dir)}, {openPlain(t, s, dir), openPlain(t, s, dir)}} {
		old, next := two[0], two[1]
		name := map[bool]string{true: "plain", false: "crypt"}[old.plain]
		put(t, old, name, []byte(strings.Repeat("-", 4096)))
		if _, err := old.Own(t.Context(), name, ownerOne, 0, 0); err != nil {
			t.Fatal(err)
		}
		late, _, err := old.OpenTarget(t.Context(), name, ownerOne)
		if err != nil {
			t.Fatal(err)
		}
		// The write goes out alone: it is not time to look at the mark, whose answer it would wait for.
		inner, encrypted := late.(*target)
		if !encrypted {
			inner = late.(*plainTarget).target
		}
		inner.mu.Lock()
		inner.checked = time.Now().Add(time.Hour)
		inner.mu.Unlock()
		s.StopConnections()
		unread := s.Unread()
		wrote := make(chan error)
		go func() {
			_, err := late.WriteAt([]byte(strings.Repeat("old", 1000)), 0)
			wrote <- err
		}()
		eventually(t, "the request, into the server's kernel", func() bool { return s.Unread() >= unread+3000 })
		again, _, err := next.OpenTarget(t.Context(), name, ownerOne)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.WriteAt([]byte(strings.Repeat("new", 1000)), 0); err != nil {
			t.Fatal(err)
		}
		s.Continue()
		class(t, "the old connection's write", <-wrote, fault.Unavailable)
		if err := again.Sync(); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(dir + "/" + name); err != nil || string(b[:3000]) != strings.Repeat("new", 1000) {
			t.Errorf("%q, %v", b, err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
		_ = late.Close()
		if b, err := os.ReadFile(dir + "/." + name + ".owner"); err != nil || strings.Contains(string(b), "session") {
			t.Errorf("the mark of a target that was closed: %s, %v", b, err)
		}
	}
}

// TestBreakEndsTheOwner: the connection of an owner that was declared dead writes nothing any more.
func TestBreakEndsTheOwner(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	dead, admin := open(t, s, dir), open(t, s, dir)
	put(t, dead, "p", []byte("----"))
	if _, err := dead.Own(t.Context(), "p", ownerOne, 0, 0); err != nil {
		t.Fatal(err)
	}
	target, _, err := dead.OpenTarget(t.Context(), "p", ownerOne)
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.Break(t.Context(), "p", true); err != nil {
		t.Fatal(err)
	}
	_, err = target.WriteAt([]byte("late"), 0)
	class(t, "write", err, fault.Unavailable)
	_, _, err = dead.OpenTarget(t.Context(), "p", ownerOne)
	class(t, "open again", err, fault.WrongState)
	if b, err := os.ReadFile(dir + "/p"); err != nil || string(b) != "----" {
		t.Errorf("%q, %v", b, err)
	}
	_ = target.Close()
}

// TestTargetOfALostConnection says so, and a Sync that was not begun can be asked for again elsewhere.
func TestTargetOfALostConnection(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	r := open(t, s, dir)
	put(t, r, "p", []byte("----"))
	if _, err := r.Own(t.Context(), "p", ownerOne, 0, 0); err != nil {
		t.Fatal(err)
	}
	target, mark, err := r.OpenTarget(t.Context(), "p", ownerOne)
	if err != nil {
		t.Fatal(err)
	}
	s.KillConnections()
	_, err = target.WriteAt([]byte("x"), 0)
	class(t, "write", err, fault.Unavailable)
	err = target.Sync()
	class(t, "sync", err, fault.Unavailable)
	if _, notBegun := err.(*repository.NotBegun); !notBegun {
		t.Errorf("%T", err)
	}
	_ = target.Close()
	target, again, err := r.OpenTarget(t.Context(), "p", ownerOne)
	if err != nil || again != mark {
		t.Fatal(again, err)
	}
	here, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // the storage server is this machine
	if boot := target.(repository.Booted).Boot(); err != nil || boot == "" || boot != strings.TrimSpace(string(here)) {
		t.Errorf("boot %q, %v", boot, err)
	}
	if _, err := target.WriteAt([]byte("x"), 0); err != nil {
		t.Error(err)
	}
	if err := target.Close(); err != nil {
		t.Error(err)
	}
}
