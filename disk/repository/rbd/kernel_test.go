package rbd

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/lab/cephlab"
	"hayloft/lab/guest"
	"hayloft/lab/labtest"
	"hayloft/lab/ownspace"
)

const (
	kernelSize = 1 << 20
	insideDir  = "/programs/ceph"
)

var guestOwner = repository.Owner{Host: "guest", Machine: 3}

// TestKernel: a kernel, that of a guest, maps images of a cluster outside of it.
func TestKernel(t *testing.T) {
	ownspace.Run(t, ownspace.Network, func(t *testing.T) {
		tap(t)
		dir, err := os.MkdirTemp("", "c")
		if err != nil {
			t.Fatal(err)
		}
		c, err := cephlab.Start(t.Context(), cephlab.Config{Dir: dir, Address: "10.7.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		keyring, err := c.CreateUser(t.Context(), "hayloft")
		if err != nil {
			t.Fatal(err)
		}
		r, err := New(disk.Repository{ID: 7, Path: "rbd", Options: map[string]string{"CEPH_CONF": c.Conf, "CEPH_USER": "hayloft", "CEPH_KEYRING": keyring}})
		if err != nil {
			t.Fatal(err)
		}
		written(t, r, "d/p", strings.Repeat("x", kernelSize))
		written(t, r, "odd", "12345")
		g := guest.ForTest(t, guest.Config{Network: guest.Network{Tap: "tap0", Address: "10.7.0.2/24", Gateway: "10.7.0.1"}, Programs: map[string]string{
			"rbd.test": guest.BuildTests(t, "hayloft/disk/repository/rbd"), "ceph/ceph.conf": c.Conf, "ceph/keyring": keyring}})
		inside := func(name string) {
			t.Helper()
			begun := time.Now()
			out, err := g.Test(t.Context(), "rbd.test", name)
			t.Logf("%s took %.0f s", name, time.Since(begun).Seconds())
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		inside("TestInsideAttach")
		if _, err := r.Marked(t.Context(), "d/p"); !fault.Is(err, fault.NotFound) {
			t.Errorf("after it was disowned: %v", err)
		}
		if got := content(t, r, "d/p"); got[:5] != "guest" || got[5] != 'x' {
			t.Errorf("%q", got[:6])
		}
		inside("TestInsideKeep")
		if err := r.Break(t.Context(), "d/p", true); err != nil {
			t.Fatal(err)
		}
		inside("TestInsideLate")
		if got := content(t, r, "d/p"); got[:5] != "guest" {
			t.Errorf("a late write arrived: %q", got[:6])
		}
	}, "ceph-mon", "ceph-mgr", "ceph-osd", "rbd", "rados", "qemu-storage-daemon")
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
	link, err := netlink.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// inside gives the repository of the outer test.
func inside(t *testing.T) *Repository {
	t.Helper()
	labtest.OwnGuest(t)
	key, err := os.ReadFile(filepath.Join(insideDir, "keyring"))
	if err != nil {
		t.Fatal(err)
	}
	keyring := filepath.Join(t.TempDir(), "keyring")
	if err := os.WriteFile(keyring, key, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := New(disk.Repository{ID: 7, Path: "rbd", Options: map[string]string{"CEPH_CONF": filepath.Join(insideDir, "ceph.conf"),
		"CEPH_USER": "hayloft", "CEPH_KEYRING": keyring, "ATTACH": "kernel"}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func attached(t *testing.T, r *Repository) string {
	t.Helper()
	path, err := r.Own(t.Context(), "d/p", guestOwner, 1000, 1001)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Uid != 1000 || st.Gid != 1001 || st.Mode != unix.S_IFBLK|0o600 {
		t.Errorf("%s: %+v, %v", path, st, err)
	}
	return path
}

// put writes to a device, past the page cache's patience.
func put(path, text string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// TestInsideAttach runs in the guest: the whole life of a mapped image.
func TestInsideAttach(t *testing.T) {
	r := inside(t)
	path := attached(t, r)
	if again := attached(t, r); again != path {
		t.Errorf("owned again as %s, before %s", again, path)
	}
	_, err := r.Own(t.Context(), "odd", guestOwner, 0, 0)
	class(t, "own what has no whole sectors", err, fault.Unsupported)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); size != kernelSize || err != nil {
		t.Error(size, err)
	}
	p := make([]byte, 10)
	if _, err := f.ReadAt(p, 1000); err != nil || string(p) != "xxxxxxxxxx" {
		t.Errorf("%q, %v", p, err)
	}
	class(t, "disown what is in use", r.Disown(t.Context(), "d/p", guestOwner), fault.Busy)
	f.Close()
	if err := put(path, "guest"); err != nil {
		t.Fatal(err)
	}
	if err := r.Disown(t.Context(), "d/p", guestOwner); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", path, err)
	}
}

// TestInsideKeep runs in the guest, and leaves the image mapped.
func TestInsideKeep(t *testing.T) {
	r := inside(t)
	if err := put(attached(t, r), "guest"); err != nil {
		t.Fatal(err)
	}
}

// TestInsideLate runs in the guest when the image was taken from it.
func TestInsideLate(t *testing.T) {
	r := inside(t)
	i, err := r.lookup(t.Context(), "d/p")
	if err != nil {
		t.Fatal(err)
	}
	path, err := r.mapped(i)
	if err != nil || path == "" {
		t.Fatal(path, err)
	}
	done := make(chan error, 1)
	go func() { done <- put(path, "late!") }()
	ctx, cancel := context.WithTimeout(t.Context(), r.limit)
	defer cancel()
	select {
	case err := <-done:
		if !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ESHUTDOWN) && !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.EPERM) {
			t.Errorf("a late write: %v", err)
		}
	case <-ctx.Done():
		t.Log("a late write hangs")
	}
}
