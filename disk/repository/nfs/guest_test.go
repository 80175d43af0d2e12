package nfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/lab/labtest"
	"hayloft/lab/nfslab"
)

// patience ends a hang: a guest may be slow.
const patience = 5 * time.Minute

// impatient has a server that is away noticed soon.
const impatient = "timeo=10,retrans=1"

func connect(t *testing.T, dir, export, options string) *Repository {
	t.Helper()
	r, err := Config{Dir: dir, Grace: time.Nanosecond}.New(disk.Repository{ID: 7, Driver: "nfs", Path: "127.0.0.1:" + export, Options: map[string]string{"MOUNT_OPTIONS": options}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if r.mount.there() {
			unix.Unmount(r.mount.dir, unix.MNT_DETACH)
			t.Errorf("%s is still mounted", r.mount.dir)
		}
	})
	return r
}

func (m *mount) there() bool {
	_, err := m.find()
	return !fault.Is(err, fault.NotFound)
}

func TestGuestNFSSuite(t *testing.T) {
	labtest.Guest(t)
	s := nfslab.Start(t, nfslab.Disk(t, "ext4"))
	// One mount for all: to make one takes a second there.
	mounts := t.TempDir()
	first := connect(t, mounts, s.Dir, "")
	repositorytest.Run(t, func(t *testing.T) repository.Repository {
		if _, err := first.List(t.Context(), ""); err != nil { // it is there, and in use
			t.Fatal(err)
		}
		left, err := filepath.Glob(first.mount.dir + "/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range left {
			if err := os.RemoveAll(name); err != nil && filepath.Base(name) != "lost+found" {
				t.Fatal(err)
			}
		}
		r, err := Config{Dir: mounts, Grace: time.Nanosecond}.New(disk.Repository{ID: 7, Driver: "nfs", Path: "127.0.0.1:" + s.Dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	})
}

// TestGuestNFSClones: what a clone moves is moved by the server.
func TestGuestNFSClones(t *testing.T) {
	labtest.Guest(t)
	for kind, want := range map[string]repository.CloneKind{"ext4": repository.Copied, "xfs": repository.Reflinked} {
		t.Run(kind, func(t *testing.T) {
			s := nfslab.Start(t, nfslab.Disk(t, kind))
			r := connect(t, t.TempDir(), s.Dir, "")
			content := bytes.Repeat([]byte("hay!"), 1<<20)
			if err := os.WriteFile(s.Dir+"/a", content, 0o600); err != nil {
				t.Fatal(err)
			}
			w, got, err := r.CreateFrom(t.Context(), "a", "b")
			if err != nil || got != want {
				t.Fatal(got, err)
			}
			if err := w.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(s.Dir + "/b"); err != nil || !bytes.Equal(b, content) {
				t.Errorf("the clone differs: %d bytes, %v", len(b), err)
			}
			stats := r.mount.stats(t)
			t.Logf("%s: %v", got, stats)
			if stats["READ"]+stats["WRITE"] > 0 || stats["COPY"]+stats["CLONE"] == 0 {
				t.Error("the bytes came through this host")
			}
		})
	}
}

// stats counts operations that the client asked of the server.
func (m *mount) stats(t *testing.T) map[string]int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountstats")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), " mounted on "+m.dir+" ")
	if !ok {
		t.Fatalf("no statistics of %s", m.dir)
	}
	counts := map[string]int{}
	for line := range strings.Lines(after) {
		if strings.HasPrefix(line, "device ") {
			break
		}
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		var n int
		if _, err := fmt.Sscan(rest, &n); err == nil && n > 0 {
			counts[name] = n
		}
	}
	return map[string]int{"READ": counts["READ"], "WRITE": counts["WRITE"], "COPY": counts["COPY"], "CLONE": counts["CLONE"]}
}

// TestGuestNFSServerGoes: in the middle of a read, a write and a clone. All of them end with an error, nothing of what was
// not finished is visible when the server is back, and the same repository goes on.
func TestGuestNFSServerGoes(t *testing.T) {
	labtest.Guest(t)
	s := nfslab.Start(t, nfslab.Disk(t, "ext4"))
	r := connect(t, t.TempDir(), s.Dir, impatient)
	const size = 8 << 20
	if err := os.WriteFile(s.Dir+"/a", bytes.Repeat([]byte("hay!"), size/4), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := src.ReadAt(make([]byte, 1000), 0); err != nil {
		t.Fatal(err)
	}
	w, err := r.Create(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	c, _, err := r.CreateFrom(t.Context(), "a", "c")
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	began := time.Now()
	away := func(what string, err error) {
		t.Helper()
		t.Logf("%s, after %v: %v", what, time.Since(began).Round(time.Millisecond), err)
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v: %v", what, fault.ClassOf(err), err)
		}
		began = time.Now()
	}
	_, err = io.Copy(io.Discard, io.NewSectionReader(src, size/2, size/2))
	away("read", err)
	_, err = w.WriteAt(make([]byte, 4<<20), 1<<20)
	if err == nil {
		err = w.Commit(t.Context())
	}
	away("write", err)
	if _, err = c.WriteAt([]byte("changed"), 0); err == nil {
		err = c.Commit(t.Context())
	}
	away("clone's commit", err)
	// The kernel's client has whoever opens something wait until it knows the server again. Callers do not.
	soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, _, err = r.CreateFrom(soon, "a", "d")
	away("clone", err)
	_, err = r.Create(soon, "e")
	away("create", err)
	s.Resume()
	for _, w := range []repository.Writer{w, c} {
		if err := w.Abort(); err != nil {
			t.Logf("abort: %v", err)
		}
	}
	until := time.Now().Add(patience)
	for {
		list, err := r.List(t.Context(), "")
		if err == nil {
			if len(list) != 1 || list[0].Name != "a" {
				t.Errorf("there are %v", list)
			}
			break
		}
		if time.Now().After(until) {
			t.Fatalf("%v after it came back: %v", patience, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	w, err = r.Create(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if e, err := os.ReadDir(s.Dir); err != nil {
		t.Error(err)
	} else {
		for _, e := range e {
			switch name := e.Name(); {
			case name == "a" || name == "b" || name == "lost+found":
			case strings.HasPrefix(name, ".nfs"): // what was open and removed, of a client that could not say that it closed it
				t.Logf("left by the kernel: %s", name)
			default:
				t.Errorf("left: %s", name)
			}
		}
	}
}

// TestGuestNFSMounts: who shares a mount, when it goes, and what is not ours.
func TestGuestNFSMounts(t *testing.T) {
	labtest.Guest(t)
	s := nfslab.Start(t, nfslab.Disk(t, "ext4"))
	dir := t.TempDir()
	if err := os.WriteFile(s.Dir+"/a", []byte("hay"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(options string) *Repository {
		t.Helper()
		r := connect(t, dir, s.Dir, options)
		if _, err := r.Stat(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		return r
	}
	one, two, other := open(""), open(""), open("vers=4.1,rsize=65536")
	if one.mount.dir != two.mount.dir || one.mount.dir == other.mount.dir {
		t.Errorf("%s, %s, %s", one.mount.dir, two.mount.dir, other.mount.dir)
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, one.mount.dir) {
			for _, word := range []string{"nosuid", "nodev", "noexec", "softerr", "vers=4.2", "lookupcache=pos"} {
				if !strings.Contains(line, word) {
					t.Errorf("no %s: %s", word, line)
				}
			}
		}
	}
	one.Close()
	if !two.mount.there() {
		t.Error("unmounted under another's use")
	}
	src, err := two.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	two.Close()
	if !two.mount.there() {
		t.Error("unmounted under an open file")
	}
	if p := make([]byte, 3); src.Close() != nil || p == nil {
		t.Error("close")
	}
	if _, err := two.Stat(t.Context(), "a"); err != nil { // used again after Close
		t.Error(err)
	}
	two.Close()
	if two.mount.there() {
		t.Error("nobody uses it, and it is there")
	}

	idle, err := Config{Dir: dir, Idle: 50 * time.Millisecond}.New(disk.Repository{ID: 7, Path: "127.0.0.1:" + s.Dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Stat(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(patience); idle.mount.there(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("idle for long, and mounted")
		}
	}

	// What somebody else mounted there is left alone.
	if err := os.MkdirAll(one.mount.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", one.mount.dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Create(t.Context(), "x"); !fault.Is(err, fault.WrongState) || !strings.Contains(err.Error(), "tmpfs of type tmpfs is mounted") {
		t.Error(err)
	}
	one.Close()
	if e, err := os.ReadDir(one.mount.dir); err != nil || len(e) != 0 || !one.mount.there() {
		t.Error(e, err)
	}
	if err := unix.Unmount(one.mount.dir, 0); err != nil {
		t.Fatal(err)
	}

	// A mount that somebody took away is made again, and nothing is written to what lay under it.
	if _, err := one.Stat(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(one.mount.dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := one.Repository.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if e, err := os.ReadDir(s.Dir); err != nil || len(e) != 1 { // lost+found
		t.Error(e, err)
	}
	one.Close()

	for export, want := range map[string]fault.Class{filepath.Join(s.Dir, "gone"): fault.Unavailable, "/root": fault.Unavailable} {
		r := connect(t, dir, export, "")
		_, err := r.Stat(t.Context(), "a")
		if !fault.Is(err, want) && !fault.Is(err, fault.Permission) {
			t.Errorf("%s: %v: %v", export, fault.ClassOf(err), err)
		}
		t.Log(err)
		if _, err := os.Stat(r.mount.dir); err == nil {
			t.Errorf("%s is left", r.mount.dir)
		}
	}
	s.Stop()
	r := connect(t, dir, s.Dir, impatient)
	if _, err := r.Stat(t.Context(), "a"); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	s.Resume() // unmounting asks the server, too
}
