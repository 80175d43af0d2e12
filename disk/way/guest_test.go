package way

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/localstore"
	"hayloft/disk/localstore/lvm"
	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

const guestGroup = "hay-way"

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := (command.Exec{}).Run(context.WithoutCancel(t.Context()), command.Cmd{Name: name, Args: args})
	if err != nil {
		t.Error(err)
	}
	return string(out)
}

// onLVM is a bench whose machines' disks are logical volumes of a group on an empty disk of the guest.
func onLVM(t *testing.T, layout localstore.Layout) *bench {
	t.Helper()
	device := labtest.Disks(t, 1)[0]
	run(t, "vgcreate", "-y", "-s", "1m", guestGroup, device)
	t.Cleanup(func() {
		run(t, "vgremove", "-y", "-ff", guestGroup)
		run(t, "pvremove", "-y", "-ff", device)
		run(t, "wipefs", "-a", device)
	})
	b := newBench(t, 0)
	b.volumes = b.openLVM(layout)
	b.reopen(0)
	return b
}

func (b *bench) openLVM(layout localstore.Layout) localstore.Volumes {
	b.Helper()
	s, err := lvm.Open(b.Context(), lvm.Config{Path: guestGroup, Layout: layout, Max: 500 << 20, Instance: "way", LockDir: filepath.Join(b.run, "..", "lock"),
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// ofMachines lists the volumes of machines.
func (b *bench) ofMachines() []string {
	b.Helper()
	list, err := b.volumes.List(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	var names []string
	for _, v := range list {
		if _, ok := machineOf(v.Name); ok || strings.HasSuffix(v.Name, partSuffix) {
			names = append(names, v.Name)
		}
	}
	return names
}

func TestGuestDisksOnThickLVM(t *testing.T) {
	labtest.Guest(t)
	disksOnLVM(t, localstore.Thick)
}

func TestGuestDisksOnThinLVM(t *testing.T) {
	labtest.Guest(t)
	disksOnLVM(t, localstore.Thin)
}

// disksOnLVM takes machines from their first start over a reboot of the host to their end.
func disksOnLVM(t *testing.T, layout localstore.Layout) {
	began := time.Now()
	step := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }
	b := onLVM(t, layout)
	step("group")
	content := diskContent()
	img := b.add("tiny", content)
	r := b.request(1, disk.Spec{ID: 0, Image: img, Size: 8 << 20}, disk.Spec{ID: 1, Image: img, Size: 6 << 20, Mode: "OFFLINE"},
		disk.Spec{ID: 2, Volatile: "fs", FS: "ext4", Size: 8 << 20}, disk.Spec{ID: 3, Volatile: "swap", Size: 4 << 20})
	r.UID, r.GID = testUID, testGID
	p := b.prepare(r)
	step("prepared")
	for i, d := range p.Devices {
		if uid, gid, mode := owner(t, d.Path); d.Kind != device.Block || uid != testUID || gid != testGID || mode&0o077 != 0 {
			t.Errorf("disk %d: %+v belongs to %d:%d, mode %o", i, d, uid, gid, mode)
		}
	}
	for i, want := range map[int]string{2: "ext4", 3: "swap"} {
		if got := strings.TrimSpace(run(t, "blkid", "-p", "-s", "TYPE", "-o", "value", p.Devices[i].Path)); got != want {
			t.Errorf("disk %d is %q", i, got)
		}
	}
	copied := readFile(t, p.Devices[1].Path)
	if len(copied) < 6<<20 || !bytes.Equal(copied[:len(content)], content) || len(bytes.Trim(copied[len(content):], "\x00")) > 0 {
		t.Error("the copy differs from its image")
	}
	qemuIO(t, p.Devices[0].Path, "qcow2", "write -P 1 0 8M", "discard 1M 2M", "write -P 2 0 8M", "read -P 2 0 8M")
	qemuIO(t, p.Devices[1].Path, "raw", "write -P 3 5M 64k")
	qemuIO(t, p.Devices[2].Path, "raw", "write -P 4 7M 64k")

	step("written")
	// The host is started anew.
	run(t, "vgchange", "-an", guestGroup)
	b.volumes = b.openLVM(layout)
	b.reopen(0)
	again := b.prepare(r)
	for i, d := range again.Devices {
		if uid, _, _ := owner(t, d.Path); d != p.Devices[i] || uid != testUID {
			t.Errorf("after a reboot: %+v of %d instead of %+v", d, uid, p.Devices[i])
		}
	}
	qemuIO(t, p.Devices[0].Path, "qcow2", "read -P 2 0 8M")
	qemuIO(t, p.Devices[1].Path, "raw", "read -P 3 5M 64k")
	step("prepared after a reboot")
	for id, size := range []int64{10 << 20, 9 << 20, 9 << 20} {
		if err := b.way.Resize(t.Context(), 1, "", id, size); err != nil {
			t.Error(err)
		}
	}
	qemuIO(t, p.Devices[0].Path, "qcow2", "read -P 2 0 8M", "write -P 5 8M 2M")
	if got := len(readFile(t, p.Devices[1].Path)); got != 9<<20 {
		t.Errorf("grown to %d", got)
	}

	step("grown")
	if layout == localstore.Thick {
		b.movedAway(r)
	} else {
		b.several(img)
	}
	step("moved, or several prepared")
	for id := 1; id < 5; id++ {
		if err := b.way.Remove(t.Context(), id, b.dir(id)); err != nil {
			t.Error(err)
		}
	}
	if left := b.ofMachines(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	step("removed")
	b.nothing()
	b.removeBases()
}

// removeBases has bases make room for one that needs all of it.
func (b *bench) removeBases() {
	b.Helper()
	c, err := b.way.Capacity(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.prepare(b.request(20, disk.Spec{Volatile: "fs", Size: c.Free - 4<<20}))
	if err := b.way.Remove(b.Context(), 20, ""); err != nil {
		b.Error(err)
	}
	list, err := b.volumes.List(b.Context())
	if err != nil || len(list) != 0 {
		b.Errorf("left: %+v %v", list, err)
	}
}

// movedAway has another host take machine 1 up; what it had here is free.
func (b *bench) movedAway(r disk.Request) {
	b.Helper()
	t := b.T
	if err := b.way.Stash(t.Context(), 1, b.dir(1), nil, b.repository); err != nil {
		t.Fatal(err)
	}
	if left := b.ofMachines(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if fi, err := os.Stat(filepath.Join(b.repository.Path, "machines/1/disk.0")); err != nil || fi.Size() > 12<<20 {
		t.Errorf("%v %v", fi, err)
	}
	p, err := b.way.Unstash(t.Context(), r, b.repository, nil)
	if err != nil {
		t.Fatal(err)
	}
	qemuIO(t, p.Devices[0].Path, "qcow2", "read -P 2 0 8M", "read -P 5 8M 2M")
	qemuIO(t, p.Devices[1].Path, "raw", "read -P 3 5M 64k")
	qemuIO(t, p.Devices[2].Path, "raw", "read -P 4 7M 64k")
}

// several machines are prepared at once, and one for which there is no room.
func (b *bench) several(img *disk.Image) {
	b.Helper()
	t := b.T
	var group sync.WaitGroup
	for id := 2; id < 5; id++ {
		group.Go(func() {
			if _, err := b.way.Prepare(t.Context(), b.request(id, disk.Spec{Image: img, Mode: "OFFLINE"}), nil); err != nil {
				t.Errorf("machine %d: %v", id, err)
			}
		})
	}
	group.Wait()
	before := b.ofMachines()
	_, err := b.way.Prepare(t.Context(), b.request(9, disk.Spec{ID: 1, Volatile: "swap", Size: 1 << 20}, disk.Spec{ID: 2, Volatile: "fs", Size: 600 << 20}), nil)
	if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "machine 9: disk 2: ") {
		t.Errorf("beyond LS_MAX: %v", err)
	}
	if after := b.ofMachines(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("a failure left %v of %v", after, before)
	}
}
