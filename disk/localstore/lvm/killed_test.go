package lvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/localstore"
	"hayloft/internal/command"
	"hayloft/internal/lvm"
	"hayloft/lab/labtest"
)

// killer kills LVM somewhere in the middle of what changes a group, as a dying host does. The first of each tool lives, to
// know how long it takes, which those that are quicker tell anew.
type killer struct {
	random *rand.Rand
	takes  map[string]time.Duration
	killed []string
}

func (k *killer) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	if !slices.Contains([]string{"lvcreate", "lvremove", "lvchange", "lvrename", "lvextend"}, cmd.Name) {
		return command.Exec{}.Run(ctx, cmd)
	}
	takes, known := k.takes[cmd.Name]
	if !known {
		began := time.Now()
		out, err := command.Exec{}.Run(ctx, cmd)
		k.takes[cmd.Name] = time.Since(began)
		return out, err
	}
	c := exec.Command(cmd.Name, cmd.Args...)
	c.Env = append(os.Environ(), cmd.Env...)
	began := time.Now()
	if err := c.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-time.After(takes/5 + time.Duration(k.random.Int64N(int64(takes)))):
		_ = c.Process.Kill()
		err = <-ended
	}
	if err == nil { // it was quicker
		k.takes[cmd.Name] = time.Since(began)
		return nil, nil
	}
	k.killed = append(k.killed, cmd.Name)
	return nil, errors.New("killed")
}

func TestGuestLVMThickKilled(t *testing.T) { killed(t, localstore.Thick) }

func TestGuestLVMThinKilled(t *testing.T) { killed(t, localstore.Thin) }

func killed(t *testing.T, layout localstore.Layout) {
	labtest.Guest(t)
	volumeGroup(t)
	dir := t.TempDir()
	open := func(runner command.Runner) *Store {
		s, err := Open(t.Context(), Config{Path: guestGroup, Layout: layout, Max: 300 << 20, Instance: string(layout), LockDir: dir,
			Tools: lvm.Tools{Runner: runner}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	k := &killer{random: rand.New(rand.NewPCG(4, 2)), takes: map[string]time.Duration{}}
	well, dying := open(command.Exec{}), open(k)
	if layout == localstore.Thin { // it makes the pool
		k.takes["lvcreate"] = time.Second
		_, err := dying.Provision(t.Context(), localstore.VolumeSpec{Name: "base", Size: 3 << 20})
		t.Log("pool:", err, run(t, "lvs", "-a", guestGroup))
		delete(k.takes, "lvcreate")
	}
	base := provisionFilled(t, well, "base", 0x33)
	for round := range 3 {
		name := fmt.Sprintf("%d.0", round)
		spec := localstore.VolumeSpec{Name: name, Size: 3 << 20}
		_, err := dying.Provision(t.Context(), spec)
		provisionFilled(t, well, name, byte(round+1))
		t.Log(round, "provision:", err)
		if layout == localstore.Thin {
			_, err = dying.Snapshot(t.Context(), name, localstore.VolumeSpec{Name: "copy"})
			copied, wellErr := well.Snapshot(t.Context(), name, localstore.VolumeSpec{Name: "copy"})
			if wellErr != nil {
				t.Fatal(wellErr)
			}
			t.Log(round, "snapshot:", err)
			check(t, copied, byte(round+1))
		}
		_, err = dying.Rename(t.Context(), name, "renamed")
		if v, wellErr := well.Rename(t.Context(), name, "renamed"); wellErr != nil {
			t.Fatal(wellErr)
		} else {
			check(t, v, byte(round+1))
		}
		t.Log(round, "rename:", err)
		check(t, base, 0x33)
		for _, gone := range []string{"renamed", "copy"} {
			err = dying.Unprovision(t.Context(), gone)
			if err := well.Unprovision(t.Context(), gone); err != nil {
				t.Fatal(err)
			}
			t.Log(round, "unprovision:", err)
		}
	}
	well = open(command.Exec{})
	list, err := well.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "base" {
		t.Errorf("there is %+v, %v", list, err)
	}
	check(t, base, 0x33)
	// What hangs since LVM died between two steps goes on.
	run(t, "dmsetup", "suspend", lvm.DeviceName(guestGroup, well.logical("base")))
	if base, err = well.Find(t.Context(), "base"); err != nil {
		t.Fatal(err)
	}
	check(t, base, 0x33)
	if err := well.Unprovision(t.Context(), "base"); err != nil {
		t.Error(err)
	}
	if len(k.killed) < 3 {
		t.Errorf("killed only %s", k.killed)
	}
	t.Log("killed", strings.Join(k.killed, " "))
	t.Log(run(t, "lvs", "-a", guestGroup))
}

// provisionFilled makes a volume, which must read as zeros, and writes to all of it.
func provisionFilled(t *testing.T, s *Store, name string, b byte) localstore.Volume {
	t.Helper()
	v, err := s.Provision(t.Context(), localstore.VolumeSpec{Name: name, Size: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if v.Zeros || b != 0x33 {
		check(t, v, 0)
	}
	f, err := os.OpenFile(v.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(slices.Repeat([]byte{b}, 3<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return v
}

// check that all of a volume is one byte, as the disk has it.
func check(t *testing.T, v localstore.Volume, b byte) {
	t.Helper()
	f, err := os.Open(v.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	got := make([]byte, 3<<20)
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(got, func(g byte) bool { return g != b }); i >= 0 {
		t.Fatalf("volume %s: byte %d is %#x, not %#x", v.Name, i, got[i], b)
	}
}
