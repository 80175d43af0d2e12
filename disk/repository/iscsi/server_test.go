package iscsi

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/internal/lvm"
	"hayloft/lab/guest"
	"hayloft/lab/ownspace"
)

// The storage server is a guest with real LVM and tgt; this host reads and writes it in user space. Each in a guest of its
// own: both take longer than one may.

func TestStorageServerThick(t *testing.T) {
	storageServer(t, "", func(t *testing.T, r *Repository) { served(t, r, possession) })
}

func TestStorageServerThin(t *testing.T) {
	storageServer(t, "pool", func(t *testing.T, r *Repository) {
		served(t, r, func(t *testing.T, r *Repository, want []byte) {
			cloned(t, r, want)
			full(t, r)
		})
	})
}

// TestStorageServerClones is the suite of cloning with real snapshots of thick volumes, in parts that each have a guest.
func TestStorageServerClones(t *testing.T) {
	if os.Getenv("HAYLOFT_GUEST_FULL") != "1" {
		t.Skip("takes many minutes: run by make guest")
	}
	const parts = 13 // a test each: so none is in another's way on a busy machine
	for part := range parts {
		t.Run(fmt.Sprint("part", part), func(t *testing.T) {
			storageServer(t, "", func(t *testing.T, r *Repository) {
				repositorytest.Cloning(t, func(t *testing.T) repository.Repository {
					t.Cleanup(func() { emptied(t, r) })
					return r
				}, part, parts)
			})
		})
	}
}

// emptied removes the objects, those first that depend on others, also persistent ones in use, and sees that nothing else is left.
func emptied(t *testing.T, r *Repository) {
	t.Helper()
	ctx := context.Background()
	for range 2 {
		all, err := r.List(ctx, "")
		if err != nil {
			t.Error(err)
		}
		for _, i := range all {
			err := r.Delete(ctx, i.Name)
			if fault.Is(err, fault.Busy) {
				err = r.Break(ctx, i.Name, true)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	nothing(t, r)
}

// nothing sees that neither volumes nor targets are left.
func nothing(t *testing.T, r *Repository) {
	t.Helper()
	all, err := r.volumes(context.Background())
	targets, lost := r.targets(context.Background())
	all = slices.DeleteFunc(all, func(v lvm.Volume) bool { return v.Name == r.pool })
	if len(all) != 0 || len(targets) != 0 || err != nil || lost != nil {
		t.Errorf("left: %+v, %+v, %v, %v", all, targets, err, lost)
	}
}

func storageServer(t *testing.T, pool string, life func(*testing.T, *Repository)) {
	ownspace.Run(t, ownspace.Network, func(t *testing.T) {
		tap(t)
		g := guest.ForTest(t, guest.Config{Disks: []guest.Disk{{Size: 512 << 20}},
			Network: guest.Network{Tap: "tap0", Address: "10.7.0.2/24", Gateway: "10.7.0.1"}})
		device := g.DiskPaths()[0]
		script := "tr '\\0' '\\356' </dev/zero | dd of=" + device + " bs=1M count=64 iflag=fullblock status=none" +
			"; dd if=/dev/zero of=" + device + " bs=1M count=1 conv=notrunc status=none; vgcreate -y -s 1m group " + device
		if pool != "" {
			script += "; lvcreate -y -L 16m --type thin-pool --zero y -n " + pool + " group; lvchange -q --errorwhenfull y group/" + pool
		}
		g.Script(t.Context(), t, script+"; tgtd; for i in $(seq 1200); do tgtadm --op show --mode sys >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1")
		r, err := New(disk.Repository{ID: 7, Path: "group", Options: map[string]string{"PORTAL": "10.7.0.2", "POOL": pool}})
		if err != nil {
			t.Fatal(err)
		}
		r.server = g
		life(t, r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		t.Logf("%.1f s of the guest's CPU", g.CPUSeconds())
	}, "qemu-system-x86_64", "qemu-storage-daemon")
}

// served is the life of an object in user space.
func served(t *testing.T, r *Repository, more func(*testing.T, *Repository, []byte)) {
	w, err := r.Create(t.Context(), "d/p")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	want := make([]byte, 3<<20+77)
	if err := w.SetSize(int64(len(want))); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{5, 1 << 20, 3 << 20} {
		copy(want[at:], "here and there")
		if _, err := w.WriteAt([]byte("here and there"), int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	more(t, r, want)
	left, err := r.List(t.Context(), "")
	if err != nil || len(left) != 1 {
		t.Errorf("left: %+v, %v", left, err)
	}
	for _, i := range left {
		if err := r.Delete(t.Context(), i.Name); err != nil {
			t.Error(err)
		}
	}
	nothing(t, r)
}

// cloned: a thin snapshot.
func cloned(t *testing.T, r *Repository, want []byte) {
	w, kind, err := r.CreateFrom(t.Context(), "d/p", "c")
	if err != nil || kind != repository.ThinClone {
		t.Fatal(kind, err)
	}
	defer w.Abort()
	if _, err := w.WriteAt([]byte("clone"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if content(t, r, "d/p") != string(want) {
		t.Error("the parent has changed")
	}
	if err := r.Delete(t.Context(), "d/p"); err != nil {
		t.Fatal(err)
	}
	copy(want[1<<20:], "clone")
	if content(t, r, "c") != string(want) {
		t.Error("the clone is different")
	}
	if c, err := r.Capacity(t.Context()); err != nil || c.Total != 16<<20 || c.Used == 0 || c.Free+c.Used != c.Total {
		t.Errorf("%+v, %v", c, err)
	}
}

// possession: a persistent image grows, and is taken from a host that goes on writing.
func possession(t *testing.T, r *Repository, want []byte) {
	if _, err := r.Own(t.Context(), "d/p", alice, 0, 0); err != nil {
		t.Fatal(err)
	}
	target, _, err := r.OpenTarget(t.Context(), "d/p", alice)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	got := make([]byte, len(want))
	if _, err := target.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the object is different, %v", err)
	}
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
	if err := r.Break(t.Context(), "d/p", true); err != nil {
		t.Fatal(err)
	}
	_, err = target.WriteAt([]byte("late"), 0)
	class(t, "late write", err, fault.Busy)
	if content(t, r, "d/p") != string(want) {
		t.Error("the image is different")
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
