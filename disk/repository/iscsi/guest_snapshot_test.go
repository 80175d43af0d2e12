package iscsi

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/children"
	"hayloft/internal/lvm"
	"hayloft/lab/labtest"
)

// random is content that nobody can guess.
func random(seed byte) []byte {
	b := make([]byte, guestSize)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// overwrite writes a whole device.
func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// has sees what the volume of an object has.
func has(t *testing.T, r *Repository, name string, want []byte) {
	t.Helper()
	if !bytes.Equal(onServer(t, r, name), want) {
		t.Errorf("%s is different", name)
	}
}

// filled is an object with content.
func filled(t *testing.T, r *Repository, name string, b []byte) {
	t.Helper()
	empty(t, r, name)
	overwrite(t, lvm.Path(guestGroup, objectPrefix+encode(name)), b)
}

// TestGuestISCSISnapshot: the kernel's snapshots by real LVM, until all has changed.
func TestGuestISCSISnapshot(t *testing.T) {
	labtest.Guest(t)
	r := guestStorage(t, "user")
	original := random(1)
	filled(t, r, "a", original)
	clone(t, r, "a", "b", repository.LVMSnapshot)
	says(t, "delete the origin", r.Delete(t.Context(), "a"), fault.Busy, "needed by b")
	origin, err := r.lookup(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, origin.Path(), random(2)) // nobody does that to an image: it makes b keep all of what was there
	has(t, r, "b", original)
	class(t, "removal of an origin, by LVM", r.remove(t.Context(), origin), fault.Busy)
	if err := r.Flatten(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	parent(t, r, "b", "")
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	has(t, r, "b", original)
	grouped(t, copyPrefix+"b")
}

// grouped sees that the group has these volumes and no other.
func grouped(t *testing.T, want ...string) {
	t.Helper()
	if left := strings.Fields(sh(t, "lvs --noheadings -o lv_name "+guestGroup)); !slices.Equal(left, want) {
		t.Errorf("the group has %q, want %q", left, want)
	}
}

// snapshot is an image a with a clone d/p.
func snapshot(t *testing.T, r *Repository) (content []byte) {
	t.Helper()
	content = random(1)
	filled(t, r, "a", content)
	clone(t, r, "a", "d/p", repository.LVMSnapshot)
	return content
}

// TestGuestISCSIThickSnapshotAttached: a machine writes to all of a clone, through tgt and open-iscsi.
func TestGuestISCSIThickSnapshotAttached(t *testing.T) {
	labtest.Guest(t)
	r := guestStorage(t, "kernel")
	original, changed := snapshot(t, r), random(2)
	overwrite(t, mine(t, r), changed)
	says(t, "flatten what is attached", r.Flatten(t.Context(), "d/p"), fault.Busy, guestOwner.Host)
	if err := r.Disown(t.Context(), "d/p", guestOwner); err != nil {
		t.Fatal(err)
	}
	has(t, r, "d/p", changed)
	has(t, r, "a", original)
	v, err := r.lookup(t.Context(), "d/p")
	if err != nil || v.Broken || v.DataPercent >= 100 || v.DataPercent < 80 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestGuestISCSIThickSnapshotFaults: what LVM refuses, and what it would do to others.
func TestGuestISCSIThickSnapshotFaults(t *testing.T) {
	labtest.Guest(t)
	r := guestStorage(t, "user")
	original := snapshot(t, r)
	clone(t, r, "d/p", "copy", repository.Copied)
	origin, err := r.lookup(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.extend(t.Context(), origin, 2*guestSize); err == nil || !strings.Contains(err.Error(), "only while inactive") {
		t.Errorf("LVM makes an origin longer: %v", err)
	}
	says(t, "a longer origin", r.extendable(t.Context(), origin), fault.Busy, "needed by d/p")

	sh(t, "lvcreate -qq -y -s -L 2m -n backup "+guestGroup+"/"+objectPrefix+"copy")
	says(t, "delete under a snapshot of others", r.Delete(t.Context(), "copy"), fault.Busy, "volume backup (not Hayloft's)")
	sh(t, "lvremove -qq -y "+guestGroup+"/backup")

	sh(t, "vgchange -qq -an "+guestGroup)
	v, err := r.lookup(t.Context(), "d/p")
	if err == nil {
		err = r.activate(t.Context(), v)
	}
	if err != nil {
		t.Fatal(err)
	}
	has(t, r, "d/p", original)

	g, err := (lvm.Tools{}).Group(t.Context(), guestGroup)
	if err != nil {
		t.Fatal(err)
	}
	sh(t, fmt.Sprintf("lvcreate -qq -y -W n -Z n -an -L %db -n most %s", g.Free-guestSize+g.Extent, guestGroup))
	_, _, err = r.CreateFrom(t.Context(), "a", "c")
	class(t, "clone without room", err, fault.OutOfSpace)
	class(t, "flatten without room", r.Flatten(t.Context(), "d/p"), fault.OutOfSpace)
	has(t, r, "d/p", original)
	grouped(t, objectPrefix+"a", objectPrefix+"copy", objectPrefix+"d+p", "most")
}

// TestGuestISCSIThickSnapshotKilled: what LVM and dd leave that are killed in the middle.
func TestGuestISCSIThickSnapshotKilled(t *testing.T) {
	labtest.Guest(t)
	r := guestStorage(t, "user")
	original := snapshot(t, r)
	killedLVM(t, r, original)
	killedCopy(t, r, original)
	for _, name := range []string{"d/p", "a"} {
		if err := r.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	grouped(t)
}

// killedLVM: LVM dies while it makes a snapshot. What it leaves is tagged, hides nothing, and is swept.
func killedLVM(t *testing.T, r *Repository, original []byte) {
	for i := range 6 {
		l := lease{1, "dead"}
		cmd := exec.Command("lvcreate", "-y", "-n", partPrefix+"k", "--addtag", ourTag, "--addtag", l.tag(), "-k", "n", "-a", "y",
			"-c", "64k", "-s", "-L", fmt.Sprintf("%db", lvm.SnapshotSpace(guestSize, snapshotChunk)), guestGroup+"/"+objectPrefix+"a")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 150 * time.Millisecond) // at whatever moment that is
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		all, err := r.volumes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range all {
			if !ours(v) {
				t.Errorf("volume %s has no tag of ours", v.Name)
			}
		}
		v, err := r.lookup(t.Context(), "a")
		if err == nil {
			err = r.activate(t.Context(), v)
		}
		if err != nil {
			t.Fatal(err)
		}
		has(t, r, "a", original)
		has(t, r, "d/p", original)
		if err := r.Sweep(t.Context(), ""); err != nil {
			t.Error(err)
		}
		grouped(t, objectPrefix+"a", objectPrefix+"d+p")
	}
}

// killedCopy: what copies the clone dies in the middle of making it independent.
func killedCopy(t *testing.T, r *Repository, original []byte) {
	done := make(chan error, 1)
	go func() { done <- r.Flatten(t.Context(), "d/p") }()
	for killed := false; ; {
		select {
		case err := <-done:
			if killed && err == nil || !killed && err != nil {
				t.Errorf("dd killed: %v, flatten: %v", killed, err)
			}
			has(t, r, "d/p", original)
			if killed {
				parent(t, r, "d/p", "a")
			}
			return
		default:
		}
		time.Sleep(5 * time.Millisecond)
		for _, pid := range children.Under(os.Getpid()) {
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(name) == "dd\n" {
				killed = killedMidway(t, pid) || killed
			}
		}
	}
}

// killedMidway kills a process, and says whether it had not ended before.
func killedMidway(t *testing.T, pid int) bool {
	t.Helper()
	if err := labtest.Halt(pid); err != nil {
		return false // it has ended
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if !bytes.Contains(text, []byte(") T ")) {
		return false
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	return true
}
