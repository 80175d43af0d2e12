package file

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
)

func (s *Store) begun(t *testing.T, digest string, bytes int64) string {
	t.Helper()
	dir, err := s.Begin(t.Context(), digest, localstore.Mark{Size: 4096, Bytes: bytes}, []byte("index"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func used(t *testing.T, s *Store) int64 {
	t.Helper()
	c, err := s.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c.Used
}

// TestPartialBase: it is counted from the beginning, survives a restart with what others put there, and is a base
// like others once somebody has marked it.
func TestPartialBase(t *testing.T) {
	s := open(t, 1<<20)
	dir := s.begun(t, digest, 1000)
	if s.begun(t, digest, 500) != dir || used(t, s) != 1000 {
		t.Errorf("used %d", used(t, s))
	}
	if s.begun(t, digest, 2000); used(t, s) != 2000 {
		t.Errorf("used %d", used(t, s))
	}
	if _, err := s.Begin(t.Context(), digest, localstore.Mark{Size: 4096, Bytes: 2 << 20}, nil); !fault.Is(err, fault.OutOfSpace) {
		t.Error(err)
	}
	for _, name := range []string{"data", "present", "present.part"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "data.part-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	config := s.Config
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	there, mark, err := s.Partial(t.Context(), digest)
	if err != nil || there != dir || mark != (localstore.Mark{Size: 4096, Bytes: 2000}) || used(t, s) != 2000 {
		t.Errorf("%s %+v %v", there, mark, err)
	}
	for name, want := range map[string]bool{"data": true, "index": true, "present": true, "present.part": true, "data.part-1": false} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if path, err := s.Find(t.Context(), digest, localstore.Data); path != "" || err != nil {
		t.Errorf("found %s, %v", path, err)
	}
	text, _ := json.Marshal(localstore.Mark{Size: 4096, Bytes: 4096})
	if err := os.WriteFile(filepath.Join(dir, "complete"), text, 0o400); err != nil {
		t.Fatal(err)
	}
	if path, err := s.Find(t.Context(), digest, localstore.Data); path != dir+"/data" || err != nil || used(t, s) != 4096 {
		t.Errorf("found %s, %v, used %d", path, err, used(t, s))
	}
	if there, _, err := s.Partial(t.Context(), digest); there != "" || err != nil {
		t.Error(there, err)
	}
	if err := s.Drop(t.Context(), digest, localstore.Data); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil || used(t, s) != 0 {
		t.Errorf("left: %v, used %d", err, used(t, s))
	}
}

// TestEvictingIsAsked: who has a base open is asked first; a base that came to be used meanwhile stays.
func TestEvictingIsAsked(t *testing.T) {
	other := "blake3:" + strings.Repeat("cd", 32)
	var answer func(string) error
	s, err := Open(Config{Root: filepath.Join(t.TempDir(), "ls"), Max: 1000, GID: os.Getgid(), Log: slog.New(slog.DiscardHandler),
		Evicting: func(_ context.Context, digest string) error { return answer(digest) }})
	if err != nil {
		t.Fatal(err)
	}
	s.begun(t, digest, 400)
	s.begun(t, other, 400)
	var pins []func()
	for _, c := range []struct {
		name   string
		answer func(string) error
		fits   bool
		left   int
	}{
		{"both are open", func(string) error { return errors.New("busy") }, false, 2},
		{"used meanwhile", func(d string) error { pins = append(pins, s.Pin(d)); return errors.New("busy") }, false, 2},
		{"one is open", func(d string) error {
			if d == digest {
				return errors.New("busy")
			}
			return nil
		}, true, 1},
	} {
		answer = c.answer
		r, err := s.Reserve(t.Context(), "disk", 500, 0)
		if (err == nil) != c.fits || err != nil && !fault.Is(err, fault.OutOfSpace) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil {
			r.Release()
		}
		if list, err := s.Bases(t.Context()); err != nil || len(list) != c.left {
			t.Errorf("%s: %+v %v", c.name, list, err)
		}
		for _, unpin := range pins {
			unpin()
		}
	}
}
