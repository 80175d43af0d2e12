package blockd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// restarted is a repository on a host that may be started anew, and whose files may fail when they are closed.
type restarted struct {
	repository.Writable
	mu    sync.Mutex
	boot  string
	gone  bool  // the connection is
	close error // of targets
}

func (r *restarted) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *restarted) OpenTarget(ctx context.Context, name string, o repository.Owner) (repository.Target, repository.Mark, error) {
	t, m, err := r.Writable.OpenTarget(ctx, name, o)
	if err != nil {
		return nil, m, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = false
	return &restartedTarget{t, r, r.boot}, m, nil
}

type restartedTarget struct {
	repository.Target
	repository *restarted
	boot       string
}

func (t *restartedTarget) Boot() string { return t.boot }

func (t *restartedTarget) ReadAt(p []byte, offset int64) (int, error) {
	t.repository.mu.Lock()
	defer t.repository.mu.Unlock()
	if t.repository.gone {
		return 0, errAway
	}
	return t.Target.ReadAt(p, offset)
}

func (t *restartedTarget) Close() error {
	t.repository.mu.Lock()
	defer t.repository.mu.Unlock()
	return errors.Join(t.Target.Close(), t.repository.close)
}

// TestSyncTellsWhatWasLost: what was written through a handle that was given up is not durable because a sync of the next one
// succeeds. It is told once, and not as something that had not begun.
func TestSyncTellsWhatWasLost(t *testing.T) {
	for _, c := range []struct {
		name   string
		synced bool // before it happens
		happen func(*restarted)
		lost   bool
	}{
		{"the connection is lost", false, func(*restarted) {}, false},
		{"the host is started anew", false, func(r *restarted) { r.boot = "two" }, true},
		{"the host is started anew, everything synced", true, func(r *restarted) { r.boot = "two" }, false},
		{"the file cannot be closed", false, func(r *restarted) { r.close = unix.EIO }, true},
		{"the file cannot be closed, everything synced", true, func(r *restarted) { r.close = unix.EIO }, false},
		{"the connection is lost while it is closed", false, func(r *restarted) { r.close = errAway }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			img, _ := b.persistent("mine", 8)
			repo := &restarted{Writable: b.writable(), boot: "one"}
			owner := b.directExport("12.0", img, 0, false).Direct.volume().owner()
			_, err := repo.Own(t.Context(), img.Source, owner, os.Geteuid(), os.Getegid())
			must(t, err)
			s := newSource(repo, img.Source, owner)
			defer s.Close()
			must(t, s.first(t.Context()))
			_, err = s.WriteAt(content(1000, 9), 500)
			must(t, err)
			if c.synced {
				must(t, s.Sync())
			}
			repo.set(func() {
				repo.gone = true
				c.happen(repo)
			})
			_, err = s.ReadAt(make([]byte, 10), 0)
			class(t, "read", err, fault.Unavailable)
			repo.set(func() { repo.close = nil })
			var notBegun *repository.NotBegun
			if err := s.Sync(); (err != nil) != c.lost || errors.As(err, &notBegun) {
				t.Errorf("sync: %v", err)
			}
			must(t, s.Sync())
		})
	}
}

// TestAnObjectIsClosedByItsLastUser, and what cannot be reached is opened anew.
func TestAnObjectIsClosedByItsLastUser(t *testing.T) {
	b := newBench(t)
	img := b.image(3, "tiny", content(3*chunk, 1))
	repo, err := b.open(b.repo)
	must(t, err)
	r := newReader(repo, img.Source)
	must(t, r.first(t.Context()))
	must(t, r.with(func(s repository.Source) error {
		if err := r.with(func(repository.Source) error { return errAway }); !errors.Is(err, errAway) {
			t.Error(err)
		}
		_, err := s.ReadAt(make([]byte, 10), 0) // it is open as long as it is used
		return err
	}))
	if n, err := r.ReadAt(make([]byte, 10), 3*chunk-4); n != 4 || err != io.EOF {
		t.Error(n, err)
	}
	if _, _, err := r.NextData(3 * chunk); err != io.EOF {
		t.Error(err)
	}
	must(t, r.Close())
	if _, err = r.ReadAt(make([]byte, 10), 0); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
}
