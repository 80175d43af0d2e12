package file

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
)

const digest = "blake3:abababababababababababababababababababababababababababababababab"

func open(t *testing.T, max int64) *Store {
	t.Helper()
	s, err := Open(Config{Root: filepath.Join(t.TempDir(), "ls"), Max: max, GID: os.Getgid(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReservationsHoldLSMax(t *testing.T) {
	s := open(t, 100)
	var group sync.WaitGroup
	var held atomic.Int64
	for range 30 {
		group.Go(func() {
			for range 50 {
				r, err := s.Reserve(t.Context(), "disk", 30, 0)
				if fault.Is(err, fault.OutOfSpace) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := held.Add(30); n > 100 {
					t.Errorf("%d bytes held", n)
				}
				if err := r.Grow(t.Context(), 80); !fault.Is(err, fault.OutOfSpace) {
					t.Errorf("grew: %v", err)
				}
				held.Add(-30)
				r.Release()
				r.Release()
			}
		})
	}
	group.Wait()
	if c, err := s.Capacity(t.Context()); err != nil || c.Used != 0 || c.Free != 100 || c.Total != 100 {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := s.Reserve(t.Context(), "disk of web-1", 101, 0); err == nil || !strings.Contains(err.Error(), "disk of web-1: needs 101 bytes") || !strings.Contains(err.Error(), "100 are free") {
		t.Error(err)
	}
	if _, err := s.Reserve(t.Context(), "base", 1, 1<<60); !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "needs 1152921504606846976 bytes") {
		t.Error(err)
	}
}

func TestBaseIsThereOnlyWhenMarked(t *testing.T) {
	s := open(t, 0)
	find := func() string {
		t.Helper()
		path, err := s.Find(t.Context(), digest, localstore.Data)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	b, err := s.Build(t.Context(), digest, localstore.Data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteAt([]byte("data"), 0); err != nil {
		t.Fatal(err)
	}
	// A second store on the same root (an agent that starts while the old one still works) leaves it alone.
	if _, err := Open(s.Config); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.Path()); err != nil {
		t.Fatal("swept away what is being built")
	}
	if find() != "" {
		t.Error("found before commit")
	}
	path, err := b.Commit(t.Context(), []byte("index"))
	if err != nil || path != find() {
		t.Fatal(path, err)
	}
	if err := b.Abort(); err != nil {
		t.Error(err)
	}
	// A base that was cut by somebody is none.
	_ = os.Chmod(path, 0o600)
	if err := os.Truncate(path, 2); err != nil {
		t.Fatal(err)
	}
	if find() != "" {
		t.Error("found though it was cut")
	}
	if list, _ := s.Bases(t.Context()); len(list) != 0 {
		t.Error(list)
	}
	if _, err := s.Build(t.Context(), "blake3:../x", localstore.Data); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

// Agents that start while one builds sweep away nothing of what that is building.
func TestBuiltWhileOthersStart(t *testing.T) {
	s := open(t, 0)
	var group sync.WaitGroup
	ended := make(chan struct{})
	defer group.Wait()
	defer close(ended)
	for range 2 {
		group.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				if _, err := Open(s.Config); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 100 {
		for _, kind := range []localstore.Kind{localstore.Data, localstore.Tree} {
			b, err := s.Build(t.Context(), digest, kind)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(b.Path()); err != nil {
				t.Error(err)
			}
			if err := b.Abort(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A base that cannot be marked, as on a full disk, leaves nothing that takes up room.
func TestBaseThatCannotBeMarkedIsGone(t *testing.T) {
	s := open(t, 0)
	b, err := s.Build(t.Context(), digest, localstore.Data)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := s.dir(digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "index", "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Commit(t.Context(), []byte("index")); err == nil {
		t.Error("Commit writes over what is in its way")
	}
	if err := b.Abort(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the base's directory is still there: %v", err)
	}
}

func TestTwoBuildersOneBase(t *testing.T) {
	s := open(t, 0)
	for range 2 {
		var group sync.WaitGroup
		for i := range 4 {
			group.Go(func() {
				b, err := s.Build(context.Background(), digest, localstore.Tree)
				if err == nil {
					err = os.WriteFile(filepath.Join(b.Path(), "f"), []byte("x"), 0o600)
				}
				if err == nil && i == 3 {
					err = b.Abort()
				} else if err == nil {
					_, err = b.Commit(context.Background(), nil)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	path, err := s.Find(t.Context(), digest, localstore.Tree)
	if got, err2 := os.ReadFile(path + "/f"); err != nil || err2 != nil || string(got) != "x" {
		t.Error(err, err2)
	}
	entries, _ := os.ReadDir(filepath.Dir(filepath.Dir(path)))
	if names := fmt.Sprint(entries); len(entries) != 2 {
		t.Error(names)
	}
}

func TestMachinesAreRemembered(t *testing.T) {
	s := open(t, 1000)
	for _, id := range []int{12, 3} {
		if err := s.PutMachine(t.Context(), localstore.Machine{ID: id, Dir: "/x", Promised: 300, Details: []byte(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := s.Capacity(t.Context()); c.Used != 600 || c.Free != 400 {
		t.Errorf("%+v", c)
	}
	for range 2 {
		if err := s.DropMachine(t.Context(), 3); err != nil {
			t.Error(err)
		}
	}
	if list, err := s.Machines(t.Context()); err != nil || len(list) != 1 || list[0].ID != 12 {
		t.Errorf("%+v %v", list, err)
	}
	if err := os.WriteFile(s.machinePath(5), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.Config); !fault.Is(err, fault.Corrupt) {
		t.Error(err)
	}
}
