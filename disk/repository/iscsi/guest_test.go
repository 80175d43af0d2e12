package iscsi

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

const (
	guestGroup = "hay-iscsi"
	guestSize  = 8 << 20
	old        = 0xEE // what the disk has
)

// sh runs a script in the guest.
func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := (command.Exec{}).Run(context.Background(), command.Cmd{Name: "/bin/sh", Args: []string{"-ec", script}})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return string(out)
}

// guestStorage makes a storage server of the guest, and an initiator where that is to attach: a group on a disk full of old bytes, tgtd, iscsid.
func guestStorage(t *testing.T, attach string) *Repository {
	t.Helper()
	device := labtest.Disks(t, 1)[0]
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{old}, 128<<20), 0)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	sh(t, "dd if=/dev/zero of="+device+" bs=1M count=1 conv=notrunc status=none; vgcreate -y -s 1m "+guestGroup+" "+device)
	t.Cleanup(func() {
		sh(t, "vgremove -y -ff "+guestGroup+"; pvremove -y -ff "+device+"; wipefs -qa "+device)
	})
	daemon(t, "tgtd", "-f")
	sh(t, "for i in $(seq 1200); do tgtadm --op show --mode sys >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1")
	if attach == "kernel" {
		sh(t, "modprobe iscsi_tcp")
		daemon(t, "iscsid", "-f")
		sh(t, "for i in $(seq 1200); do iscsiadm -m session 2>&1 | grep -q 'No active' && exit; sleep 0.1; done; exit 1")
	}
	r, err := New(disk.Repository{ID: 7, Path: guestGroup, Options: map[string]string{"ATTACH": attach}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// daemon runs a program until the test ends.
func daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, said.String())
		}
	})
}

var guestOwner = repository.Owner{Host: "guest", Machine: 3}

// empty makes an object of zeros: what needs QEMU's storage daemon, this guest has not.
func empty(t *testing.T, r *Repository, name string) {
	t.Helper()
	w, err := r.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := errors.Join(w.SetSize(guestSize), w.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// clone commits a clone, of that kind.
func clone(t *testing.T, r *Repository, from, name string, kind repository.CloneKind) {
	t.Helper()
	w, got, err := r.CreateFrom(t.Context(), from, name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.Commit(t.Context()); err != nil || got != kind {
		t.Fatal(got, err)
	}
}

// onServer reads the volume of an object where it is.
func onServer(t *testing.T, r *Repository, name string) []byte {
	t.Helper()
	v, err := r.lookup(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(v.Path())
	if err != nil || len(b) != guestSize {
		t.Fatal(len(b), err)
	}
	return b
}

// mine attaches, and sees whose the device is.
func mine(t *testing.T, r *Repository) string {
	t.Helper()
	path, err := r.Own(t.Context(), "d/p", guestOwner, 1000, 1001)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Uid != 1000 || st.Gid != 1001 || st.Mode != unix.S_IFBLK|0o600 {
		t.Fatalf("%s: %+v, %v", path, st, err)
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

// life is the whole life of a persistent image on real volumes: attached, cloned, taken away.
func life(t *testing.T, r *Repository) {
	empty(t, r, "d/p")
	if b := onServer(t, r, "d/p"); !bytes.Equal(b, make([]byte, guestSize)) {
		t.Fatal("a new object shows what was on the disk before")
	}
	path := mine(t, r)
	if again := mine(t, r); again != path {
		t.Errorf("owned again as %s, before %s", again, path)
	}
	_, err := r.Own(t.Context(), "d/p", repository.Owner{Host: "other", Machine: 4}, 0, 0)
	class(t, "own another's", err, fault.Busy)
	class(t, "delete what is owned", r.Delete(t.Context(), "d/p"), fault.Busy)
	if err := put(path, "by the kernel"); err != nil {
		t.Fatal(err)
	}
	clone(t, r, "d/p", "c", repository.Copied)
	if b := onServer(t, r, "c"); string(b[:13]) != "by the kernel" {
		t.Errorf("the clone has %q", b[:13])
	}
	held, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	class(t, "disown what is in use", r.Disown(t.Context(), "d/p", guestOwner), fault.Busy)
	held.Close()
	if err := put(path, "later"); err != nil {
		t.Fatal(err)
	}
	if err := r.Disown(t.Context(), "d/p", guestOwner); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", path, err)
	}
	if b := onServer(t, r, "d/p"); string(b[:13]) != "latere kernel" {
		t.Errorf("the image has %q", b[:13])
	}
	if b := onServer(t, r, "c"); string(b[:13]) != "by the kernel" {
		t.Errorf("the clone has %q", b[:13])
	}
	if targets, err := r.targets(t.Context()); err != nil || len(targets) > 0 {
		t.Error(targets, err)
	}
}

// TestGuestISCSIThick: real LVM, tgt and open-iscsi.
func TestGuestISCSIThick(t *testing.T) {
	labtest.Guest(t)
	r := guestStorage(t, "kernel")
	life(t, r)
	if err := r.Delete(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	forgotten(t, r)
	late(t, r)
}

// forgotten: the server does not know the target any more, as when it was started anew; the owner attaches again.
func forgotten(t *testing.T, r *Repository) {
	if err := put(mine(t, r), "before"); err != nil {
		t.Fatal(err)
	}
	targets, err := r.targets(t.Context())
	if err != nil || len(targets) != 1 || targets[0].sessions != 1 {
		t.Fatal(targets, err)
	}
	if err := r.dropTarget(t.Context(), targets[0].id); err != nil {
		t.Fatal(err)
	}
	if err := put(mine(t, r), "AFT"); err != nil {
		t.Fatal(err)
	}
	if b := onServer(t, r, "d/p"); string(b[:6]) != "AFTore" {
		t.Errorf("%q", b[:6])
	}
}

// late: an image is taken from a host that goes on writing.
func late(t *testing.T, r *Repository) {
	path := mine(t, r)
	if err := put(path, "first"); err != nil {
		t.Fatal(err)
	}
	if err := r.Break(t.Context(), "d/p", true); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- put(path, "late!") }()
	select {
	case err := <-done:
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("a late write: %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("a late write hangs")
	}
	if b := onServer(t, r, "d/p"); string(b[:5]) != "first" {
		t.Errorf("a late write arrived: %q", b[:5])
	}
	v, err := r.lookup(t.Context(), "d/p")
	if err == nil {
		err = r.detach(t.Context(), v)
	}
	if err != nil {
		t.Error(err)
	}
}

// TestGuestISCSISelection: what LVM decides between several hosts.
func TestGuestISCSISelection(t *testing.T) {
	labtest.Guest(t)
	r := guestStorage(t, "user")
	empty(t, r, "d/p")
	var group sync.WaitGroup
	won := make(chan int, 4)
	for i := range cap(won) {
		group.Go(func() {
			_, err := r.Own(t.Context(), "d/p", repository.Owner{Host: "ü", Machine: i}, 0, 0)
			if err == nil {
				won <- i
			} else if !fault.Is(err, fault.Busy) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	m, err := r.Marked(t.Context(), "d/p")
	if err != nil || len(won) != 1 || m.Machine != <-won || m.Host != "ü" {
		t.Errorf("%+v, %v", m, err)
	}
	for _, yes := range []bool{true, false} {
		if err := r.SetUndrained(t.Context(), "d/p", m.Owner, m.Generation, yes); err != nil {
			t.Error(err)
		}
		if now, err := r.Marked(t.Context(), "d/p"); err != nil || now.Undrained != yes {
			t.Error(now, err)
		}
	}
	if err := r.Disown(t.Context(), "d/p", m.Owner); err != nil {
		t.Error(err)
	}
	// A volume with the name of a writer that died, and one that is not ours.
	sh(t, "lvcreate -qq -y -W n -Z n -an -L 1m --addtag "+ourTag+" --addtag "+lease{1, "dead"}.tag()+" -n "+partPrefix+"w "+guestGroup+
		"; lvcreate -qq -y -W n -Z n -an -L 1m -n "+objectPrefix+"foreign "+guestGroup)
	empty(t, r, "w")
	class(t, "delete what is not ours", r.Delete(t.Context(), "foreign"), fault.Busy)
	_, err = r.Create(t.Context(), "foreign")
	class(t, "create what is there", err, fault.Busy)
	for _, name := range []string{"d/p", "w"} {
		if err := r.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	left := strings.Fields(sh(t, "lvs --noheadings -o lv_name "+guestGroup))
	if !slices.Equal(left, []string{objectPrefix + "foreign"}) {
		t.Errorf("the group has %q", left)
	}
}
