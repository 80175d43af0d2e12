package rbd

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hayloft/disk/repository"
)

// TestLeftSnapshots: what died between a snapshot and its clone is removed when it is old enough to be dead.
func TestLeftSnapshots(t *testing.T) {
	r := empty(t)
	written(t, r, "a", strings.Repeat("x", 5000))
	young := fmt.Sprintf("%s%d.1", clonePrefix, time.Now().Unix())
	for _, snapshot := range []string{clonePrefix + "1700000000.1", young, "theirs"} {
		admin(t, r, "snap", "create", "--no-progress", "--image", "a", "--snap", snapshot)
	}
	admin(t, r, "snap", "protect", "--image", "a", "--snap", clonePrefix+"1700000000.1")
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got := admin(t, r, "snap", "ls", "--image", "a"); strings.Contains(got, "1700000000") || !strings.Contains(got, young) || !strings.Contains(got, "theirs") {
		t.Error(got)
	}
}

// TestDeleteWhileRead: the name is free at once, the reader reads on, and the space comes back with a sweep.
func TestDeleteWhileRead(t *testing.T) {
	r := empty(t)
	written(t, r, "a", "hello")
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if _, err := s.ReadAt(p, 0); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
	written(t, r, "a", "there")
	if got := content(t, r, "a"); got != "there" {
		t.Error(got)
	}
	s.Close()
	if err := r.Sweep(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := admin(t, r, "ls"); got != "a" {
		t.Errorf("there is %q", got)
	}
}

// TestSnapshotsGo: a parent has no snapshot that no clone needs.
func TestSnapshotsGo(t *testing.T) {
	r := empty(t)
	written(t, r, "a", strings.Repeat("x", 5000))
	for _, name := range []string{"b", "c"} {
		w, kind, err := r.CreateFrom(t.Context(), "a", name)
		if err != nil || kind != repository.RBDClone {
			t.Fatal(kind, err)
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	snapshots := func() int { return strings.Count(admin(t, r, "snap", "ls", "--image", "a"), clonePrefix) }
	if n := snapshots(); n != 2 {
		t.Errorf("%d snapshots", n)
	}
	if err := r.Flatten(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if n := snapshots(); n != 1 {
		t.Errorf("%d snapshots", n)
	}
	if err := r.Delete(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if n := snapshots(); n != 0 {
		t.Errorf("%d snapshots", n)
	}
}
