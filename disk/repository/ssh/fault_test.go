package ssh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/internal/remote"
	"hayloft/lab/labtest"
	"hayloft/lab/loopfs"
	"hayloft/lab/sshlab"
)

func noise(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte("noise"))).Read(b)
	return b
}

func put(t *testing.T, r repository.Repository, name string, content []byte) {
	t.Helper()
	w, err := r.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func class(t *testing.T, what string, err error, want fault.Class, words ...string) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v does not say %q", what, err, w)
		}
	}
}

// files are all names in a directory, hidden ones too.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// patience ends a hang.
const patience = 2 * time.Minute

// eventually waits for what the other host does by itself.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s does not come", what)
		}
	}
}

func TestDescriptionsThatAreRefused(t *testing.T) {
	for _, row := range []struct {
		path    string
		options map[string]string
		word    string
	}{
		{"relative", map[string]string{"HOST": "h"}, "relative"},
		{"", map[string]string{"HOST": "h"}, "not absolute"},
		{"/x", nil, "HOST"},
		{"/x", map[string]string{"HOST": "h", "PORT": "many"}, "PORT"},
		{"/x", map[string]string{"HOST": "h", "PLAIN_DATA": "maybe"}, "PLAIN_DATA"},
	} {
		_, err := New(disk.Repository{ID: 7, Path: row.path, Options: row.options})
		class(t, row.word, err, fault.Invalid, "datastore 7", row.word)
	}
}

func TestUnreachable(t *testing.T) {
	s := sshlab.Start(t)
	all := func(r *Repository) []error {
		_, err1 := r.Open(t.Context(), "a")
		_, err2 := r.Create(t.Context(), "a")
		_, err3 := r.List(t.Context(), "")
		_, err4 := r.Capacity(t.Context())
		_, err5 := r.Stat(t.Context(), "a")
		_, _, err6 := r.CreateFrom(t.Context(), "a", "b")
		_, _, err7 := r.OpenTarget(t.Context(), "a", repository.Owner{})
		return []error{err1, err2, err3, err4, err5, err6, err7, r.Delete(t.Context(), "a"), r.Sweep(t.Context(), "")}
	}
	dir := t.TempDir() + "/gone"
	for _, err := range all(open(t, s, dir)) {
		class(t, "no directory", err, fault.Unavailable, "datastore 7 ("+s.Host+":"+dir+")")
	}
	for _, row := range []struct{ option, file, word string }{
		{"KEY_FILE", s.StrangerFile, "does not let root in"},
		{"KNOWN_HOSTS_FILE", s.EmptyHostsFile, "unknown"},
		{"KNOWN_HOSTS_FILE", s.OtherHostsFile, "changed"},
	} {
		for _, err := range all(open(t, s, t.TempDir(), row.option, row.file))[:2] {
			class(t, row.word, err, fault.Permission, "datastore 7", row.word, row.file)
		}
	}
	s.Kill()
	for _, err := range all(open(t, s, t.TempDir())) {
		class(t, "no server", err, fault.Unavailable, "datastore 7", s.Host)
	}
}

// TestReaderOutlivesConnections: it goes on when the server is back, unless the object is another one then.
func TestReaderOutlivesConnections(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	for _, r := range []*Repository{open(t, s, dir), openPlain(t, s, dir)} {
		name := map[bool]string{true: "plain", false: "crypt"}[r.plain]
		content := noise(3 << 20)
		put(t, r, name, content)
		src, err := r.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		read := func() error {
			got := make([]byte, len(content))
			_, err := src.ReadAt(got, 0)
			if err == nil && !bytes.Equal(got, content) {
				t.Error("other bytes")
			}
			return err
		}
		for range 2 {
			s.KillConnections()
			if err := read(); err != nil {
				t.Error(err)
			}
		}
		s.Kill()
		class(t, "server gone", read(), fault.Unavailable, "datastore 7", s.Host)
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the server", func() bool { return read() == nil })
		if err := os.WriteFile(dir+"/"+name, content[1:], 0o600); err != nil {
			t.Fatal(err)
		}
		s.KillConnections()
		class(t, "another object", read(), fault.WrongState, "was changed while it was open")
	}
}

// TestLostWhileReading: many readers, and connections that end under them: each gets the right bytes or an error.
func TestLostWhileReading(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	content := noise(8 << 20)
	put(t, open(t, s, dir), "big", content)
	for _, r := range []*Repository{open(t, s, dir), openPlain(t, s, dir)} {
		src, err := r.Open(t.Context(), "big")
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		var stop atomic.Bool
		var good atomic.Int64
		var group sync.WaitGroup
		for i := range 4 {
			group.Go(func() {
				for k := i; !stop.Load(); k++ {
					p := make([]byte, 1<<20)
					offset := int64(k*777_777) % (7 << 20)
					_, err := src.ReadAt(p, offset)
					switch {
					case err == nil && bytes.Equal(p, content[offset:offset+1<<20]):
						good.Add(1)
					case !fault.Is(err, fault.Unavailable):
						t.Errorf("at %d: %v", offset, err)
					}
				}
			})
		}
		for range 4 {
			before := good.Load()
			eventually(t, "a read", func() bool { return good.Load() > before+2 })
			s.KillConnections()
		}
		stop.Store(true)
		group.Wait()
	}
}

// TestLostWhileWriting: the writer learns of it, the name is free again, and nothing is left.
func TestLostWhileWriting(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	for _, r := range []*Repository{open(t, s, dir), openPlain(t, s, dir)} {
		w, err := r.Create(t.Context(), "d/a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(noise(1<<20), 0); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		group.Go(s.KillConnections)
		for err == nil {
			_, err = w.WriteAt(noise(1<<20), 0)
		}
		group.Wait()
		class(t, "write", err, fault.Unavailable, "datastore 7")
		class(t, "commit", w.Commit(t.Context()), fault.Unavailable)
		class(t, "abort", w.Abort(), fault.Unavailable)
		if err := r.Sweep(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		if got := files(t, dir); got != "" {
			t.Errorf("left: %s", got)
		}
		put(t, r, "d/a", []byte("again"))
		if err := r.Delete(t.Context(), "d/a"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeadWriter: what is left when nobody could tidy up, the shell that holds the lock killed too.
func TestDeadWriter(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	r := open(t, s, dir)
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	live, err := open(t, s, dir).Create(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	defer live.Abort()
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); strings.Count(got, ".part") != 2 {
		t.Errorf("a sweep took what lives: %s", got)
	}
	s.Kill()
	if got := files(t, dir); strings.Count(got, ".part") != 2 || strings.Count(got, ".lock") != 4 {
		t.Errorf("a shell tidied up before it was killed: %s", got)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	r = open(t, s, dir)
	if err := r.Sweep(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); strings.Contains(got, ".a.") {
		t.Errorf("left: %s", got)
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestLostWhileCloning: cp ends with the connection, and what it wrote goes.
func TestLostWhileCloning(t *testing.T) {
	bin := t.TempDir()
	slow := "#!/bin/sh\necho $$ >" + bin + "/pid.new; mv " + bin + "/pid.new " + bin + "/pid\n" +
		`for last; do :; done` + "\necho half >\"$last\"\nexec sleep 1000\n"
	s := sshlab.Start(t, "SetEnv PATH="+bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	dir := t.TempDir()
	r := open(t, s, dir)
	put(t, r, "a", []byte("parent"))
	if err := os.WriteFile(bin+"/cp", []byte(slow), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, lose := range []bool{true, false} {
		_ = os.Remove(bin + "/pid")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, _, err := r.CreateFrom(ctx, "a", "b")
			done <- err
		}()
		var pid string
		eventually(t, "cp", func() bool {
			b, _ := os.ReadFile(bin + "/pid")
			pid = strings.TrimSpace(string(b))
			return pid != ""
		})
		if lose {
			s.KillConnections()
			class(t, "lost", <-done, fault.Unavailable)
		} else {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		cancel()
		eventually(t, "the end of cp", func() bool { // which nobody may have waited for
			b, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || strings.Contains(string(b), ") Z ")
		})
		eventually(t, "tidiness", func() bool {
			if err := r.Sweep(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			return files(t, dir) == "a"
		})
	}
}

// TestServerThatHangs: its kernel takes what we send, and nothing comes back.
func TestServerThatHangs(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	r, err := Connect(disk.Repository{ID: 7, Path: dir}, remote.Config{Address: s.Host, KeyFile: s.KeyFile, KnownHostsFile: s.KnownHostsFile,
		KeepAlive: 50 * time.Millisecond, DeadAfter: 5 * time.Second, ConnectLimit: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	put(t, r, "a", []byte("hello"))
	w, err := r.Create(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	src, err := r.Open(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	s.Stop()
	short, end := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer end()
	_, err = r.Stat(short, "a")
	class(t, "stat", err, fault.Unavailable)
	_, err = w.WriteAt([]byte("x"), 0)
	class(t, "write", err, fault.Unavailable, "has not answered")
	_, err = src.ReadAt(make([]byte, 1), 0)
	class(t, "read", err, fault.Unavailable)
	cancel()
	if _, err := src.ReadAt(make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.Continue()
	eventually(t, "the server", func() bool { _, err := r.Stat(t.Context(), "a"); return err == nil })
	eventually(t, "the end of the lost writer's lock", func() bool {
		w, err := r.Create(t.Context(), "b")
		if err == nil {
			err = w.Abort()
		}
		return err == nil
	})
}

func TestFullAndReflinked(t *testing.T) {
	loopfs.Run(t, "xfs", func(t *testing.T, dir string) {
		s := sshlab.Start(t)
		r := open(t, s, dir)
		put(t, r, "a", noise(1<<20))
		w, kind, err := r.CreateFrom(t.Context(), "a", "b")
		if err != nil || kind != repository.Reflinked {
			t.Fatal(kind, err)
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		small := t.TempDir()
		if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=4m"); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*Repository{open(t, s, small), openPlain(t, s, small)} {
			put(t, r, "a", noise(3<<20))
			_, _, err = r.CreateFrom(t.Context(), "a", "b")
			class(t, "clone", err, fault.OutOfSpace, "datastore 7", "object b")
			w, err := r.Create(t.Context(), "c")
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.WriteAt(noise(4<<20), 0)
			class(t, "write", err, fault.OutOfSpace, "object c")
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			if got := files(t, small); got != "a" {
				t.Errorf("left: %s", got)
			}
			put(t, r, "c", noise(500_000))
			for _, n := range []string{"a", "c"} {
				if err := r.Delete(t.Context(), n); err != nil {
					t.Error(err)
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		s.Kill()
		labtest.Unmount(t, small)
	})
}
