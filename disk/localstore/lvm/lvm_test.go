package lvm

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hayloft/disk/localstore"
	"hayloft/disk/localstore/volumestest"
	"hayloft/internal/lvm"
	"hayloft/internal/lvm/lvmtest"
)

const extent = 1 << 16

// files are the devices of a played host.
type files struct{ host *lvmtest.Host }

func (f files) path(_, name string) string { return f.host.Path(name) }

func (f files) there(path string) error {
	_, err := os.Stat(path)
	return err
}

func (f files) own(path string, uid, gid int) error { return node{}.own(path, uid, gid) }

func (f files) block() bool { return false }

// played is a store on a host that is played.
func played(t *testing.T, layout localstore.Layout) (*lvmtest.Host, func(t *testing.T, max int64) localstore.Volumes) {
	dir := t.TempDir()
	host := lvmtest.New(filepath.Join(dir, "dev"), "vg-0", 60<<20, extent)
	return host, func(t *testing.T, max int64) localstore.Volumes {
		t.Helper()
		if layout == localstore.Thin && max == 0 {
			max = 30 << 20 // or the pool takes all of the group
		}
		s, err := open(t.Context(), Config{Path: "vg-0", Layout: layout, Max: max, Instance: "a-b", Tools: lvm.Tools{Runner: host},
			LockDir: filepath.Join(dir, "locks"), Log: slog.New(slog.DiscardHandler)}, files{host})
		if err != nil {
			t.Fatal(err)
		}
		s.patience = 100 * time.Millisecond
		return s
	}
}

func TestPlayed(t *testing.T) {
	for _, layout := range []localstore.Layout{localstore.Thick, localstore.Thin} {
		t.Run(string(layout), func(t *testing.T) {
			host, open := played(t, layout)
			tools := lvm.Tools{Runner: host}
			volumestest.Run(t, volumestest.Place{
				Open: open, Unit: 1 << 20, Units: 20, Snapshots: layout == localstore.Thin,
				Reboot: func(*testing.T) { host.Reboot() },
				Foreign: func(t *testing.T, name string) func() error {
					return foreign(t, tools, "vg-0", "hayloft-a_b-"+name)
				},
				HalfMade: func(t *testing.T, name string, size int64) {
					halfMade(t, tools, "vg-0", "a-b", "hayloft-a_b-"+name, name, size)
				},
				Hold: func(_ *testing.T, v localstore.Volume) func() {
					lv := filepath.Base(v.Path)
					host.SetOpen(lv, true)
					return func() { host.SetOpen(lv, false) }
				},
			})
		})
	}
}

// foreign makes a logical volume without tags, and checks that it is what it was.
func foreign(t *testing.T, tools lvm.Tools, group, lv string) func() error {
	t.Helper()
	if err := tools.Create(t.Context(), lvm.New{Group: group, Name: lv, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	before, err := tools.Volumes(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	return func() error {
		defer func() {
			if err := tools.Remove(t.Context(), group, lv); err != nil {
				t.Error(err)
			}
		}()
		after, err := tools.Volumes(t.Context(), group)
		if err != nil {
			return err
		}
		a, b := one(before, lv), one(after, lv)
		if a.UUID == "" || a.UUID != b.UUID || a.Size != b.Size || len(b.Tags) > 0 {
			t.Errorf("it was %+v, is %+v", a, b)
		}
		return nil
	}
}

func one(all []lvm.Volume, name string) lvm.Volume {
	for _, v := range all {
		if v.Name == name {
			return v
		}
	}
	return lvm.Volume{}
}

// halfMade is what lvcreate leaves when its caller dies right after it.
func halfMade(t *testing.T, tools lvm.Tools, group, instance, lv, name string, size int64) {
	t.Helper()
	if err := tools.Create(t.Context(), lvm.New{Group: group, Name: lv, Size: size, Private: true,
		Tags: []string{markTag, instanceTag + instance, nameTag + name, ownerTag + "0:0", makingTag}}); err != nil {
		t.Fatal(err)
	}
}
