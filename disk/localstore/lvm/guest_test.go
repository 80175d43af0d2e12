package lvm

import (
	"context"
	"log/slog"
	"testing"

	"hayloft/disk/localstore"
	"hayloft/disk/localstore/volumestest"
	"hayloft/internal/command"
	"hayloft/internal/lvm"
	"hayloft/lab/labtest"
)

const guestGroup = "hay-test"

// volumeGroup makes a group on an empty disk of the guest, and removes it with all that is in it.
func volumeGroup(t *testing.T) lvm.Tools {
	t.Helper()
	device := labtest.Disks(t, 1)[0]
	run(t, "vgcreate", "-y", "-s", "1m", guestGroup, device)
	t.Cleanup(func() {
		ctx := context.Background()
		for _, c := range [][]string{{"vgremove", "-y", "-ff", guestGroup}, {"pvremove", "-y", "-ff", device}, {"wipefs", "-a", device}} {
			if _, err := (command.Exec{}).Run(ctx, command.Cmd{Name: c[0], Args: c[1:]}); err != nil {
				t.Error(err)
			}
		}
	})
	return lvm.Tools{}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := (command.Exec{}).Run(t.Context(), command.Cmd{Name: name, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// real is a place in a real group; path and layout as LS_PATH and the driver's layout.
func real(t *testing.T, path string, layout localstore.Layout, least int64) volumestest.Place {
	tools := volumeGroup(t)
	dir := t.TempDir()
	return volumestest.Place{
		Unit: 2 << 20, Units: 200, Snapshots: layout == localstore.Thin,
		Open: func(t *testing.T, max int64) localstore.Volumes {
			t.Helper()
			if max == 0 {
				max = least
			}
			s, err := Open(t.Context(), Config{Path: path, Layout: layout, Max: max, Instance: "a-b", LockDir: dir, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Reboot: func(t *testing.T) { run(t, "vgchange", "-an", guestGroup); run(t, "vgchange", "-ay", guestGroup) },
		Foreign: func(t *testing.T, name string) func() error {
			return foreign(t, tools, guestGroup, "hayloft-a_b-"+name)
		},
		HalfMade: func(t *testing.T, name string, size int64) {
			halfMade(t, tools, guestGroup, "a-b", "hayloft-a_b-"+name, name, size)
		},
	}
}

// The suite is in parts, each within the time that a test has in a slow guest.

func TestGuestLVMThickLife(t *testing.T) {
	labtest.Guest(t)
	volumestest.Life(t, real(t, guestGroup, localstore.Thick, 0))
}

func TestGuestLVMThickCopies(t *testing.T) {
	labtest.Guest(t)
	volumestest.Copies(t, real(t, guestGroup, localstore.Thick, 0))
}

func TestGuestLVMThickSpace(t *testing.T) {
	labtest.Guest(t)
	volumestest.Space(t, real(t, guestGroup, localstore.Thick, 0))
}

// The pool is made by the first volume.
func TestGuestLVMThinLife(t *testing.T) {
	labtest.Guest(t)
	volumestest.Life(t, real(t, "/dev/"+guestGroup, localstore.Thin, 600<<20))
}

func TestGuestLVMThinCopies(t *testing.T) {
	labtest.Guest(t)
	volumestest.Copies(t, real(t, "/dev/"+guestGroup, localstore.Thin, 600<<20))
}

func TestGuestLVMThinSpace(t *testing.T) {
	labtest.Guest(t)
	place := real(t, guestGroup+"/pool", localstore.Thin, 0)
	place.Crowd = 12 // fifty are in the test of thick ones
	if err := (lvm.Tools{}).CreatePool(t.Context(), lvm.NewPool{Group: guestGroup, Name: "pool", Size: 600 << 20}); err != nil {
		t.Fatal(err)
	}
	volumestest.Space(t, place)
}
