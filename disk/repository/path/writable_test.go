package path

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// TestMarksOfBeforeGenerations: what an earlier version wrote is read, and its owner goes on.
func TestMarksOfBeforeGenerations(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	if err := os.WriteFile(dir+"/p", []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/.p.owner", []byte(`{"host":"h1","machine":3,"uid":0,"gid":0,"mode":416}`), 0o600); err != nil {
		t.Fatal(err)
	}
	owner := repository.Owner{Host: "h1", Machine: 3}
	if _, err := r.Own(t.Context(), "p", owner, os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	s, m, err := r.OpenTarget(t.Context(), "p", owner)
	if err != nil || m != (repository.Mark{Owner: owner}) {
		t.Fatal(m, err)
	}
	defer s.Close()
	if err := r.SetUndrained(t.Context(), "p", owner, m.Generation, true); err != nil {
		t.Fatal(err)
	}
	if m, err := r.Marked(t.Context(), "p"); err != nil || !m.Undrained {
		t.Error(m, err)
	}
	if e, _ := os.ReadDir(dir); len(e) != 2 {
		t.Errorf("left: %v", e)
	}
}

// TestClockSetBack: the same generation does not come twice.
func TestClockSetBack(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/p", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	synctest.Test(t, func(t *testing.T) { // a bubble's clock is that of the year 2000
		owner := repository.Owner{Host: "h", Machine: 1}
		if _, err := r.Own(t.Context(), "p", owner, os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
		m, err := r.Marked(t.Context(), "p")
		if err != nil || m.Generation <= uint64(time.Now().Add(24*time.Hour).UnixNano()) {
			t.Error(m, err)
		}
	})
}

func TestMarkNobodyCanRead(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	for file, text := range map[string]string{"/p": "", "/.p.owner": "{half"} {
		if err := os.WriteFile(dir+file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Own(t.Context(), "p", repository.Owner{Host: "h"}, os.Getuid(), os.Getgid()); !fault.Is(err, fault.Corrupt) {
		t.Error(err)
	}
	if err := r.Break(t.Context(), "p", false); !fault.Is(err, fault.Corrupt) {
		t.Error(err)
	}
	if err := r.Break(t.Context(), "p", true); err != nil {
		t.Error(err)
	}
	if _, err := r.Own(t.Context(), "p", repository.Owner{Host: "h"}, os.Getuid(), os.Getgid()); err != nil {
		t.Error(err)
	}
}

// TestHangingChange: a write that the storage may still carry out keeps later ones from being overtaken by it.
func TestHangingChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t, "/nowhere")
		s := newTarget(r, "p", nil, 100, repository.Mark{})
		answer := make(chan struct{})
		err := s.change(time.Millisecond, func() error { <-answer; return nil })
		if !fault.Is(err, fault.Unavailable) {
			t.Error(err)
		}
		again := newTarget(r, "p", nil, 100, repository.Mark{})
		err = again.change(time.Millisecond, func() error { t.Error("changed while another change hangs"); return nil })
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "object p") {
			t.Error(err)
		}
		close(answer)
		synctest.Wait()
		done := false
		if err := s.change(time.Millisecond, func() error { done = true; return nil }); err != nil || !done {
			t.Error(err)
		}
	})
}
