package iscsi

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/lab/guest"
	"hayloft/lab/ownspace"
)

// TestStorageServer: the storage server is a guest with real LVM and tgt, this host reads and writes it in user space.
func TestStorageServer(t *testing.T) {
	ownspace.Run(t, ownspace.Network, func(t *testing.T) {
		tap(t)
		g := guest.ForTest(t, guest.Config{Disks: []guest.Disk{{Size: 512 << 20}},
			Network: guest.Network{Tap: "tap0", Address: "10.7.0.2/24", Gateway: "10.7.0.1"}})
		device := g.DiskPaths()[0]
		g.Script(t.Context(), t, "tr '\\0' '\\356' </dev/zero | dd of="+device+" bs=1M count=64 iflag=fullblock status=none"+
			"; dd if=/dev/zero of="+device+" bs=1M count=1 conv=notrunc status=none; vgcreate -y -s 1m group "+device+
			"; lvcreate -y -L 16m --type thin-pool --zero y -n pool group; lvchange -q --errorwhenfull y group/pool"+
			"; tgtd; for i in $(seq 100); do tgtadm --op show --mode sys >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1")
		for kind, options := range map[repository.CloneKind]map[string]string{repository.Copied: {}, repository.ThinClone: {"POOL": "pool"}} {
			options["PORTAL"] = "10.7.0.2"
			options["TARGET"] = "iqn.2026-01.org.hayloft:" + string(kind)
			r, err := New(disk.Repository{ID: 7, Path: "group", Options: options})
			if err != nil {
				t.Fatal(err)
			}
			r.server = g
			t.Run(string(kind), func(t *testing.T) { served(t, r, kind) })
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}, "qemu-system-x86_64", "qemu-storage-daemon")
}

// served is the life of an object in user space.
func served(t *testing.T, r *Repository, kind repository.CloneKind) {
	w, err := r.Create(t.Context(), "d/p")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	want := make([]byte, 3<<20+77)
	for _, at := range []int{5, 1 << 20, 3 << 20} { // it grows
		copy(want[at:], "here and there")
		if _, err := w.WriteAt([]byte("here and there"), int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.SetSize(int64(len(want))), w.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	if content(t, r, "d/p") != string(want) {
		t.Error("the object is different")
	}
	mark := func() repository.Target {
		if _, err := r.Own(t.Context(), "d/p", alice, 0, 0); err != nil {
			t.Fatal(err)
		}
		target, _, err := r.OpenTarget(t.Context(), "d/p", alice)
		if err != nil {
			t.Fatal(err)
		}
		return target
	}
	target := mark()
	defer target.Close()
	if err := target.Truncate(5<<20 + 1); err != nil {
		t.Fatal(err)
	}
	if err := target.Discard(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := target.WriteAt([]byte("end"), 5<<20-2); err != nil {
		t.Fatal(err)
	}
	if err := target.Sync(); err != nil {
		t.Fatal(err)
	}
	want = append(want, make([]byte, 5<<20+1-len(want))...)
	clear(want[:1<<20])
	copy(want[5<<20-2:], "end")
	c, got, err := r.CreateFrom(t.Context(), "d/p", "c")
	if err != nil || got != kind {
		t.Fatal(got, err)
	}
	if err := c.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if content(t, r, "d/p") != string(want) || content(t, r, "c") != string(want) {
		t.Error("image or clone is different")
	}
	r.limit = 3 * time.Second // for the write that hangs
	taken := func() error {
		if err := r.Break(t.Context(), "d/p", true); err != nil {
			return err
		}
		_, err := target.WriteAt([]byte("late"), 0)
		return err
	}()
	r.limit = defaultLimit
	class(t, "late write", taken, fault.Busy)
	if got := content(t, r, "d/p"); strings.HasPrefix(got, "late") {
		t.Error("a late write arrived")
	}
	target.Close()
	if kind == repository.ThinClone {
		full(t, r)
	}
	for _, name := range []string{"d/p", "c"} {
		if err := r.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	all, err := r.volumes(t.Context())
	targets, lost := r.targets(t.Context())
	if len(all) != 1 || all[0].Name != "pool" || len(targets) != 0 || err != nil || lost != nil {
		t.Errorf("left: %+v, %+v, %v, %v", all, targets, err, lost)
	}
}

// full: the pool takes no more.
func full(t *testing.T, r *Repository) {
	w, err := r.Create(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.SetSize(24 << 20); err != nil {
		t.Fatal(err)
	}
	for at := int64(0); at < 24<<20 && err == nil; at += 1 << 20 {
		_, err = w.WriteAt(bytes.Repeat([]byte{1}, 1<<20), at)
	}
	if err == nil {
		err = w.Commit(t.Context())
	}
	class(t, "write to a pool that is full", err, fault.OutOfSpace)
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
}

// tap makes a device with an address for a guest.
func tap(t *testing.T) {
	t.Helper()
	device := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_ONE_QUEUE}
	address, err := netlink.ParseAddr("10.7.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(device); err != nil {
		t.Fatal(err)
	}
	for _, f := range device.Fds {
		f.Close()
	}
	for _, name := range []string{"tap0", "lo"} {
		link, err := netlink.LinkByName(name)
		if err == nil && name == "tap0" {
			err = netlink.AddrAdd(link, address)
		}
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
