package iscsi

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/command"
	"hayloft/internal/lvm"
)

// mortal is a client that dies after so many programs: it learns nothing of the next one.
type mortal struct {
	command.Runner
	lives atomic.Int64
	death
}

// death is how a client dies, and what is found of it.
type death struct {
	lastDone bool // the program that it learns nothing of is run
	alive    bool // it only loses that answer
	unseen   bool // nobody looks before Sweep comes
	hasty    bool // the clone is deleted before Sweep comes, which may be refused
}

func (m *mortal) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	n := m.lives.Add(-1)
	if n >= 0 || n < -1 && m.alive {
		return m.Runner.Run(ctx, cmd)
	}
	if n == -1 && m.lastDone {
		_, _ = m.Runner.Run(ctx, cmd)
	}
	return nil, fault.Errorf(fault.Unavailable, "killed")
}

// killed does something as a client that dies after each number of programs in turn, until it comes to its end, and has its heir
// look at what is there. What is left when nobody has given a sign of life for long, is swept.
func killed(t *testing.T, begin func(s *storage, r *Repository), do func(r *Repository) error, after func(s *storage, heir *Repository, done bool)) {
	s, r := thick(t)
	text := strings.Repeat("text", 30_000)
	written(t, r, "a", text)
	sweeper := s.repository(t, nil)
	sweeper.lease = -time.Second
	for _, how := range []death{{}, {lastDone: true}, {lastDone: true, hasty: true}, {lastDone: true, unseen: true}, {alive: true}, {alive: true, lastDone: true}} {
		for lives, done := int64(0), false; !done; lives++ {
			begin(s, r)
			m := &mortal{Runner: s, death: how}
			m.lives.Store(lives)
			dying := s.repository(t, nil)
			dying.server = m
			err := do(dying)
			if done = m.lives.Load() >= 0; done && err != nil {
				t.Fatal(err)
			}
			m.death = death{}
			m.lives.Store(-2)
			tagged(t, s)
			if !how.unseen {
				after(s, r, err == nil)
			}
			deleted := false
			if how.hasty {
				err := r.Delete(t.Context(), "b")
				if deleted = err == nil || fault.Is(err, fault.NotFound); !deleted {
					class(t, "delete at once", err, fault.Busy)
				}
			}
			if err := sweeper.Sweep(t.Context(), ""); err != nil {
				t.Error(err)
			}
			if _, gone := r.Stat(t.Context(), "b"); deleted && !fault.Is(gone, fault.NotFound) {
				t.Errorf("deleted, and there: %v", gone)
			}
			if !deleted {
				after(s, r, err == nil)
			}
			tagged(t, s)
			clean(t, s)
			if err := r.Delete(t.Context(), "b"); err != nil && !fault.Is(err, fault.NotFound) {
				t.Error(err)
			}
			if stored(t, s, r, "a") != text {
				t.Error("the parent is different")
			}
			clean(t, s)
			if t.Failed() {
				t.Fatalf("after %d programs, %+v", lives, how)
			}
			if done {
				t.Logf("%+v: %d programs", how, lives)
			}
		}
	}
}

// tagged sees that nothing is without our tag.
func tagged(t *testing.T, s *storage) {
	t.Helper()
	all, err := lvm.Tools{Runner: s.Host}.Volumes(t.Context(), testGroup)
	if err != nil {
		t.Error(err)
	}
	for _, v := range all {
		if !ours(v) {
			t.Errorf("volume %s has no tag of ours", v.Name)
		}
	}
}

func TestKilledFlattening(t *testing.T) {
	want := "own!" + strings.Repeat("text", 29_999)
	killed(t, func(s *storage, r *Repository) {
		clone(t, r, "a", "b", repository.LVMSnapshot)
		f, err := os.OpenFile(s.Path(objectPrefix+"b"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("own!"), 0); err != nil {
			t.Fatal(err)
		}
	}, func(r *Repository) error { return r.Flatten(t.Context(), "b") }, func(s *storage, heir *Repository, done bool) {
		if stored(t, s, heir, "b") != want {
			t.Error("the clone is different")
		}
		all, err := heir.List(t.Context(), "")
		if err != nil || len(all) != 2 || all[1].Name != "b" || all[1].Size != int64(len(want)) {
			t.Error(all, err)
		}
		if v, err := heir.lookup(t.Context(), "b"); err != nil || v.mark.use != free || done && v.Snapshot {
			t.Error(v, err)
		}
	})
}

func TestKilledCloning(t *testing.T) {
	for name, size := range map[string]int64{"as long": 120_000, "longer": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			killed(t, func(*storage, *Repository) {}, func(r *Repository) error {
				w, _, err := r.CreateFrom(t.Context(), "a", "b")
				if err != nil {
					return err
				}
				defer w.Abort()
				if err := w.SetSize(size); err != nil {
					return err
				}
				return w.Commit(t.Context())
			}, func(s *storage, heir *Repository, done bool) {
				info, err := heir.Stat(t.Context(), "b")
				if fault.Is(err, fault.NotFound) && !done {
					return
				}
				if err != nil || info.Size != size || !strings.HasPrefix(stored(t, s, heir, "b"), strings.Repeat("text", 30_000)) {
					t.Error(info, err)
				}
			})
		})
	}
}

func TestKilledDeleting(t *testing.T) {
	killed(t, func(_ *storage, r *Repository) { clone(t, r, "a", "b", repository.LVMSnapshot) },
		func(r *Repository) error { return r.Delete(t.Context(), "b") },
		func(s *storage, heir *Repository, done bool) {
			if _, err := heir.Stat(t.Context(), "b"); fault.Is(err, fault.NotFound) {
				return
			} else if err != nil || done || stored(t, s, heir, "b") != strings.Repeat("text", 30_000) {
				t.Error(err)
			}
		})
}
