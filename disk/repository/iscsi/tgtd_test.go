package iscsi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/children"
	"hayloft/internal/command"
)

// inUseAll is a repository in use in all ways.
type inUseAll struct {
	source repository.Source
	writer repository.Writer
	target repository.Target
}

func inUseBy(t *testing.T, r *Repository) inUseAll {
	t.Helper()
	written(t, r, "a", strings.Repeat("x", 1<<20))
	written(t, r, "p", strings.Repeat("p", 1<<20))
	if _, err := r.Own(t.Context(), "p", alice, 0, 0); err != nil {
		t.Fatal(err)
	}
	var u inUseAll
	var err error
	if u.source, err = r.Open(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if u.writer, err = r.Create(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	if _, err := u.writer.WriteAt([]byte("begun"), 0); err != nil {
		t.Fatal(err)
	}
	if u.target, _, err = r.OpenTarget(t.Context(), "p", alice); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.source.Close(); u.target.Close(); u.writer.Abort() })
	return u
}

// unanswered is how long a request waits that nobody answers: all others take far less.
const unanswered = 20 * time.Second

// TestTgtdHangs, in the middle of a read, a write, a clone; when it is back, all goes on.
func TestTgtdHangs(t *testing.T) {
	s, r := thick(t)
	r.limit = unanswered
	u := inUseBy(t, r)
	if err := s.tgt.Stop(); err != nil {
		t.Fatal(err)
	}
	defer s.tgt.Continue()
	allBounded(t, fault.Unavailable,
		step{"read", func() error { _, err := u.source.ReadAt(make([]byte, 1000), 0); return err }},
		step{"write", func() error { _, err := u.writer.WriteAt(make([]byte, 1000), 5); return err }},
		step{"write to an image", func() error { _, err := u.target.WriteAt(make([]byte, 1000), 5); return err }},
		step{"open", func() error { _, err := r.Open(t.Context(), "a"); return err }},
		step{"clone and write", func() error {
			w, _, err := r.CreateFrom(t.Context(), "a", "b")
			if err != nil {
				return err
			}
			defer w.Abort()
			_, err = w.WriteAt(make([]byte, 1000), 0)
			return err
		}},
		step{"open that is left", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := r.Open(ctx, "a")
			return err
		}})
	s.tgt.Continue()
	p := make([]byte, 1000)
	if n, err := u.source.ReadAt(p, 0); n != len(p) || err != nil {
		t.Error(n, err)
	}
	class(t, "commit of what may be lost", u.writer.Commit(t.Context()), fault.Unavailable)
	if err := u.writer.Abort(); err != nil {
		t.Error(err)
	}
	written(t, r, "w", "again")
	written(t, r, "b", "b")
	if got := content(t, r, "w") + content(t, r, "b"); got != "againb" {
		t.Error(got)
	}
}

// TestTgtdDies and comes back without targets: readers go on, writers know that they do not.
func TestTgtdDies(t *testing.T) {
	s, r := thick(t)
	r.limit = unanswered
	u := inUseBy(t, r)
	if _, err := u.target.WriteAt([]byte("acknowledged"), 10); err != nil {
		t.Fatal(err)
	}
	s.tgt.Kill()
	p := make([]byte, 1000)
	bounded(t, "read", fault.Unavailable, func() error { _, err := u.source.ReadAt(p, 0); return err })
	bounded(t, "open", fault.Unavailable, func() error {
		_, err := r.Open(t.Context(), "a")
		if err != nil && (!strings.Contains(err.Error(), "tgtd does not run") || !strings.Contains(err.Error(), "datastore 7")) {
			t.Error(err)
		}
		return err
	})
	if info, err := r.Stat(t.Context(), "a"); err != nil || info.Size != 1<<20 {
		t.Errorf("what needs no target: %+v, %v", info, err)
	}
	if err := s.tgt.Restart(); err != nil {
		t.Fatal(err)
	}
	var reads sync.WaitGroup
	reads.Go(func() { // it takes as long as the writes
		if n, err := u.source.ReadAt(p, 0); n != len(p) || err != nil || p[0] != 'x' {
			t.Error(n, err)
		}
	})
	allBounded(t, fault.Unavailable,
		step{"write", func() error { _, err := u.writer.WriteAt(make([]byte, 1000), 5); return err }},
		step{"write to an image", func() error { _, err := u.target.WriteAt(make([]byte, 1000), 5); return err }})
	reads.Wait()
	class(t, "commit", u.writer.Commit(t.Context()), fault.Unavailable)
	if err := u.writer.Abort(); err != nil {
		t.Error(err)
	}
	u.target.Close()
	again, _, err := r.OpenTarget(t.Context(), "p", alice)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.ReadAt(p, 0); err != nil || !bytes.HasPrefix(p[10:], []byte("acknowledged")) {
		t.Errorf("%q, %v", p[:30], err)
	}
	u.source.Close()
	again.Close()
	clean(t, s)
}

// storageDaemons are the children of this process that run QEMU's.
func storageDaemons(t *testing.T) []int {
	t.Helper()
	var all []int
	for _, pid := range children.Of(os.Getpid()) {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if strings.HasPrefix(string(name), "qemu-storage") {
			all = append(all, pid)
		}
	}
	return all
}

// TestSyncWithoutAChild: the server makes durable what our own child wrote, unless it was started anew meanwhile.
func TestSyncWithoutAChild(t *testing.T) {
	for _, rebooted := range []bool{false, true} {
		s, r := thick(t)
		written(t, r, "p", "persistent")
		if _, err := r.Own(t.Context(), "p", alice, 0, 0); err != nil {
			t.Fatal(err)
		}
		target, _, err := r.OpenTarget(t.Context(), "p", alice)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := target.WriteAt([]byte("PERSIST"), 0); err != nil {
			t.Fatal(err)
		}
		daemons := storageDaemons(t)
		if len(daemons) != 1 {
			t.Fatal(daemons)
		}
		if err := syscall.Kill(daemons[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for len(storageDaemons(t)) > 0 { // ends with the test's limit
			time.Sleep(time.Millisecond)
		}
		if _, err := target.ReadAt(make([]byte, 1), 0); err == nil { // a sync is not begun when it is known that the child is gone
			t.Fatal("a child that was killed answers")
		}
		var synced []string
		s.before(func(cmd command.Cmd) error {
			if cmd.Name == "sync" {
				synced = append(synced, cmd.Args...)
			}
			if cmd.Name == "cat" && rebooted {
				return fault.Errorf(fault.Unavailable, "it boots")
			}
			return nil
		})
		err = target.Sync()
		var notBegun *repository.NotBegun
		if !rebooted {
			if err != nil || len(synced) != 1 || synced[0] != s.Path(objectPrefix+"p") {
				t.Error(synced, err)
			}
		} else {
			if !errors.As(err, &notBegun) {
				t.Errorf("of a server that is away: %v", err)
			}
			target.(*persistent).boot = "before"
			s.before(nil)
			if err = target.Sync(); !fault.Is(err, fault.Unavailable) || errors.As(err, &notBegun) || !strings.Contains(err.Error(), "started anew") {
				t.Errorf("of a server that forgot: %v", err)
			}
		}
		target.Close()
		if got := content(t, r, "p"); got != "PERSISTent" {
			t.Error(got)
		}
		clean(t, s)
	}
}

// TestHalfMadeTargets: an opening that fails in the middle leaves none.
func TestHalfMadeTargets(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", "hello")
	for _, step := range []string{"new --mode logicalunit", "update", "bind"} {
		s.before(func(cmd command.Cmd) error {
			if strings.Contains(cmd.String(), "--op "+step) {
				return &command.Error{Cmd: cmd, Status: 22, Stderr: "tgtadm: invalid request\n"}
			}
			return nil
		})
		_, err := r.Open(t.Context(), "a")
		class(t, step, err, fault.Unavailable)
		clean(t, s)
	}
	s.before(nil)
	// Of one that died, Sweep takes what is old, and not of others.
	old := r.name(place{reading, fingerprint("x"), 0, 1, "0"})
	for id, name := range map[string]string{"5": old, "6": "iqn.2026-01.org.other:x"} {
		if _, err := s.tgt.Tgtadm("--op", "new", "--mode", "target", "--tid", id, "-T", name); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if all, err := r.targets(t.Context()); err != nil || len(all) != 1 || all[0].name != "iqn.2026-01.org.other:x" {
		t.Error(all, err)
	}
}
