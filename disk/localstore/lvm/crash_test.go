package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/internal/command"
	"hayloft/internal/lvm"
	"hayloft/internal/lvm/lvmtest"
)

// mortal runs a number of commands, and then no more: its process is dead. The last one may have been done or not.
type mortal struct {
	host *lvmtest.Host
	left int
	done bool
}

var errDead = errors.New("dead")

func (m *mortal) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	m.left--
	if m.left > 0 {
		return m.host.Run(ctx, cmd)
	}
	if m.left == 0 && m.done {
		_, _ = m.host.Run(ctx, cmd)
	}
	return nil, errDead
}

// TestCrash has the process die at each command of each operation, and looks at what the next one finds.
func TestCrash(t *testing.T) {
	const size = 3 * extent
	vol := func(name string, size int64) localstore.VolumeSpec {
		return localstore.VolumeSpec{Name: name, Size: size, UID: os.Geteuid(), GID: os.Getegid()}
	}
	for _, row := range []struct {
		name   string
		layout localstore.Layout
		do     func(ctx context.Context, s *Store) error
		// after says what there may be, by name, once "old" is taken out.
		after func(t *testing.T, s *Store)
	}{
		{"provision", "", func(ctx context.Context, s *Store) error { _, err := s.Provision(ctx, vol("new", size)); return err },
			func(t *testing.T, s *Store) { content(t, s, "new", size, 0, 0, true) }},
		{"longer", "", func(ctx context.Context, s *Store) error { _, err := s.Provision(ctx, vol("old", 2*size)); return err },
			func(t *testing.T, s *Store) { content(t, s, "old", 2*size, 0x44, size, true) }},
		{"raw", "", func(ctx context.Context, s *Store) error {
			v := vol("new", size)
			v.Raw = true
			_, err := s.Provision(ctx, v)
			return err
		}, func(t *testing.T, s *Store) { content(t, s, "new", size, 0, 0, true) }},
		{"rename", "", func(ctx context.Context, s *Store) error { _, err := s.Rename(ctx, "old", "new"); return err },
			func(t *testing.T, s *Store) {
				if _, err := s.Rename(t.Context(), "old", "new"); err != nil {
					t.Fatal(err)
				}
				content(t, s, "new", size, 0x44, size, false)
			}},
		{"unprovision", "", func(ctx context.Context, s *Store) error { return s.Unprovision(ctx, "old") },
			func(t *testing.T, s *Store) {
				if err := s.Unprovision(t.Context(), "old"); err != nil {
					t.Fatal(err)
				}
			}},
		{"snapshot", localstore.Thin, func(ctx context.Context, s *Store) error {
			_, err := s.Snapshot(ctx, "old", vol("new", 2*size))
			return err
		}, func(t *testing.T, s *Store) {
			if _, err := s.Snapshot(t.Context(), "old", vol("new", 2*size)); err != nil {
				t.Fatal(err)
			}
			content(t, s, "new", 2*size, 0x44, size, false)
		}},
	} {
		for _, layout := range []localstore.Layout{localstore.Thick, localstore.Thin} {
			if row.layout != "" && row.layout != layout {
				continue
			}
			for _, done := range []bool{false, true} {
				for at := 1; ; at++ {
					enough := false
					t.Run(fmt.Sprint(row.name, " ", layout, " at ", at, done), func(t *testing.T) {
						dir := t.TempDir()
						host := lvmtest.New(filepath.Join(dir, "dev"), "vg", 64<<20, extent)
						start := func(r command.Runner, locks string) *Store {
							s, err := open(t.Context(), Config{Path: "vg", Layout: layout, Max: 2 << 20, Tools: lvm.Tools{Runner: r}, LockDir: filepath.Join(dir, locks),
								Log: slog.New(slog.DiscardHandler)}, files{host})
							if err != nil {
								t.Fatal(err)
							}
							return s
						}
						healthy := start(host, "a")
						v, err := healthy.Provision(t.Context(), vol("old", size))
						if err != nil {
							t.Fatal(err)
						}
						if err := os.WriteFile(v.Path, bytes.Repeat([]byte{0x44}, size), 0o600); err != nil {
							t.Fatal(err)
						}
						m := &mortal{host: host, left: 1 << 20, done: done}
						dying := start(m, "a")
						m.left = at
						if err := row.do(t.Context(), dying); err == nil {
							if m.left > 0 {
								enough = true // it needs no more commands
							}
						} else if m.left > 0 || !errors.Is(err, errDead) {
							t.Fatal(err)
						}
						for _, s := range []*Store{healthy, start(host, "a")} {
							row.after(t, s)
						}
						s := start(host, "a")
						list, err := s.List(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						for _, v := range list {
							if err := s.Unprovision(t.Context(), v.Name); err != nil {
								t.Fatal(err)
							}
						}
						all, err := s.Tools.Volumes(t.Context(), "vg")
						if err != nil {
							t.Fatal(err)
						}
						for _, v := range all {
							if !strings.HasSuffix(v.Name, "_pool") {
								t.Errorf("%s is left, with %s", v.Name, v.Tags)
							}
						}
					})
					if enough {
						break
					}
				}
			}
		}
	}
}

// content provisions a volume, if asked, and checks that it is data up to filled and zeros behind.
func content(t *testing.T, s *Store, name string, size int64, data byte, filled int64, provision bool) {
	t.Helper()
	if provision {
		if _, err := s.Provision(t.Context(), localstore.VolumeSpec{Name: name, Size: size, UID: os.Geteuid(), GID: os.Getegid()}); err != nil {
			t.Fatal(err)
		}
	}
	v, err := s.Find(t.Context(), name)
	if err != nil || v.Size != size || v.Raw {
		t.Fatalf("%+v %v", v, err)
	}
	got, err := os.ReadFile(v.Path)
	if err != nil {
		t.Fatal(err)
	}
	if want := append(bytes.Repeat([]byte{data}, int(filled)), make([]byte, size-filled)...); !bytes.Equal(got, want) {
		t.Errorf("volume %s has not what it should", name)
	}
}

// A volume that another process is making is neither given out nor removed.
func TestMakerLives(t *testing.T) {
	host, open := played(t, localstore.Thick)
	first := open(t, 0).(*Store)
	unlock, err := first.locks.Lock(t.Context(), "1.0")
	if err != nil {
		t.Fatal(err)
	}
	halfMade(t, lvm.Tools{Runner: host}, "vg-0", "a-b", "hayloft-a_b-1.0", "1.0", 1<<20)
	second := open(t, 0).(*Store)
	all, err := second.Tools.Volumes(t.Context(), "vg-0")
	if err != nil || len(all) != 1 {
		t.Fatal("the volume that is being made was removed", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := second.Provision(ctx, localstore.VolumeSpec{Name: "1.0", Size: 1 << 20}); err == nil {
		t.Error("provisioned while another process does it")
	}
	unlock()
	if v, err := second.Provision(t.Context(), localstore.VolumeSpec{Name: "1.0", Size: 1 << 20, UID: os.Geteuid(), GID: os.Getegid()}); err != nil || !v.Zeros {
		t.Error(v, err)
	}
}

// An instance whose names could be those of another has others.
func TestInstances(t *testing.T) {
	a, b := &Store{Config: Config{Instance: "a"}, group: "vg"}, &Store{Config: Config{Instance: "a-b"}, group: "vg"}
	if x, y := a.logical("b-c"), b.logical("c"); x == y {
		t.Errorf("both %s", x)
	}
}

func TestBadConfig(t *testing.T) {
	host := lvmtest.New(t.TempDir(), "vg", 8<<20, extent)
	tools := lvm.Tools{Runner: host}
	if err := tools.Create(t.Context(), lvm.New{Group: "vg", Name: "thick", Size: extent}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		c     Config
		class fault.Class
	}{
		{Config{Path: ""}, fault.Invalid},
		{Config{Path: "/mnt/x"}, fault.Invalid},
		{Config{Path: "vg/a/b"}, fault.Invalid},
		{Config{Path: "-vg"}, fault.Invalid},
		{Config{Path: "other"}, fault.NotFound},
		{Config{Path: "vg/pool"}, fault.NotFound},
		{Config{Path: "vg/thick"}, fault.Invalid},
		{Config{Path: "vg/thick", Layout: localstore.Thick}, fault.Invalid},
		{Config{Path: "vg", Layout: "fat"}, fault.Unsupported},
		{Config{Path: "vg", Max: -1}, fault.Invalid},
		{Config{Path: "vg", Instance: "A b"}, fault.Invalid},
		{Config{Path: "vg", Instance: "x-tdata"}, fault.Invalid},
	} {
		row.c.Tools, row.c.LockDir = tools, t.TempDir()
		if _, err := open(t.Context(), row.c, files{host}); !fault.Is(err, row.class) {
			t.Errorf("%+v: %v is %v", row.c, err, fault.ClassOf(err))
		}
	}
}

// Several are removed at once; one that is in use keeps none of the others.
func TestOneBusyAmongSeveral(t *testing.T) {
	host, open := played(t, localstore.Thick)
	s := open(t, 0).(*Store)
	var names []string
	for i := range 3 {
		name := fmt.Sprintf("%d.0", i)
		if _, err := s.Provision(t.Context(), localstore.VolumeSpec{Name: name, Size: extent, UID: os.Geteuid(), GID: os.Getegid()}); err != nil {
			t.Fatal(err)
		}
		names = append(names, s.logical(name))
	}
	host.SetOpen(names[1], true)
	errs, err := s.removeAll(t.Context(), names)
	if err != nil || !fault.Is(errs[names[1]], fault.Busy) {
		t.Error(errs, err)
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 1 || list[0].Name != "1.0" {
		t.Errorf("%+v %v", list, err)
	}
}
