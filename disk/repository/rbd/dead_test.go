package rbd

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/lab/labtest"
)

// TestDeadHost: what the child of a killed host sent does not arrive after another one has taken the image, and the
// other one need not wait.
func TestDeadHost(t *testing.T) {
	r := empty(t)
	written(t, r, "d/p", strings.Repeat("x", 8192))
	one, two := repository.Owner{Host: "one", Machine: 1}, repository.Owner{Host: "two", Machine: 2}
	if _, err := r.Own(t.Context(), "d/p", one, 0, 0); err != nil {
		t.Fatal(err)
	}
	before := daemons(t)
	old, _, err := r.OpenTarget(t.Context(), "d/p", one)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if _, err := old.WriteAt([]byte("one"), 0); err != nil {
		t.Fatal(err)
	}
	pid := newDaemons(t, before, 1)[0] // hangs, with a write in it
	if err := labtest.Halt(pid); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	late := make(chan error, 1)
	go func() {
		_, err := old.WriteAt([]byte("late"), 0)
		late <- err
	}()
	begun := time.Now()
	if err := r.Break(t.Context(), "d/p", true); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Own(t.Context(), "d/p", two, 0, 0); err != nil {
		t.Fatal(err)
	}
	s, _, err := r.OpenTarget(t.Context(), "d/p", two)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.WriteAt([]byte("two!"), 0); err != nil {
		t.Fatal(err)
	}
	t.Logf("taken and written after %v", time.Since(begun))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	class(t, "the late write", <-late, fault.Busy)
	class(t, "sync", old.Sync(), fault.Busy)
	if err := s.Sync(); err != nil {
		t.Error(err)
	}
	p := make([]byte, 4)
	if _, err := s.ReadAt(p, 0); err != nil || string(p) != "two!" {
		t.Errorf("%q, %v", p, err)
	}
}

// TestChildKilled: a source goes on, a target is opened again without waiting for the dead one's watch to end.
func TestChildKilled(t *testing.T) {
	r := empty(t)
	written(t, r, "p", "hello")
	owner := repository.Owner{Host: "one", Machine: 1}
	if _, err := r.Own(t.Context(), "p", owner, 0, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		before := daemons(t)
		s, _, err := r.OpenTarget(t.Context(), "p", owner)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		begun := time.Now()
		if _, err := s.WriteAt([]byte("J"), 0); err != nil {
			t.Fatal(err)
		}
		t.Logf("first write after %v", time.Since(begun))
		if err := syscall.Kill(newDaemons(t, before, 1)[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		again(t, "notice", func() error {
			if _, err := s.WriteAt([]byte("K"), 0); !fault.Is(err, fault.Unavailable) {
				return errors.New("it lives")
			}
			return nil
		})
		var notBegun *repository.NotBegun
		if err := s.Sync(); !errors.As(err, &notBegun) {
			t.Errorf("sync: %v", err)
		}
	}
	if got := content(t, r, "p"); got != "Jello" && got != "Kello" {
		t.Error(got)
	}
}

// TestDeadWriter: while a writer may live nobody touches what it writes; then anybody may remove it.
func TestDeadWriter(t *testing.T) {
	r := empty(t)
	written(t, r, "from", strings.Repeat("x", 5000))
	before := daemons(t)
	w, err := r.Create(t.Context(), "d/a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	c, _, err := r.CreateFrom(t.Context(), "from", "d/b")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got := admin(t, r, "ls"); len(strings.Fields(got)) != 3 {
		t.Errorf("after a sweep over living writers there is %q", got)
	}
	for _, pid := range newDaemons(t, before, 2) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	again(t, "sweep", func() error {
		if err := r.Sweep(t.Context(), "d/"); err != nil {
			t.Fatal(err)
		}
		if got := admin(t, r, "ls"); got != "from" {
			return fmt.Errorf("there is %q", got)
		}
		return nil
	})
	if got := admin(t, r, "snap", "ls", "--image", "from"); got != "" {
		t.Errorf("snapshots: %s", got)
	}
	written(t, r, "d/a", "again")
}
