package way

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/lab/labtest"
)

// onBlocks is a bench whose machines' disks are block devices.
func onBlocks(t *testing.T, snapshots bool) (*bench, *fakeVolumes) {
	t.Helper()
	b, v := onVolumes(t, 0, snapshots)
	v.block = true
	t.Cleanup(func() {
		for _, name := range v.names() {
			if err := v.detach(name); err != nil {
				t.Error(err)
			}
		}
	})
	return b, v
}

// TestFullOverlayFits: the volume of an overlay has room for a disk that is written from end to end, in whatever order.
func TestFullOverlayFits(t *testing.T) {
	labtest.Root(t, "qemu-io", "qemu-img")
	b, _ := onBlocks(t, false)
	p := b.prepare(b.request(1, disk.Spec{Image: b.add("tiny", diskContent()), Size: 40 << 20}))
	d := p.Devices[0]
	if d.Kind != device.Block || d.Format != device.QCOW2 {
		t.Fatalf("%+v", d)
	}
	if _, _, mode := owner(t, d.Path); mode != 0o600 && mode != 0o660 {
		t.Errorf("mode %o", mode)
	}
	qemuIO(t, d.Path, "qcow2", "write -P 1 39M 1M", "write -P 2 0 20M", "discard 4M 8M", "write -P 3 4M 35M", "write -P 4 0 40M", "read -P 4 0 40M")
	if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", d.Path).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if err := b.way.Resize(t.Context(), 1, "", 0, 64<<20); err != nil {
		t.Fatal(err)
	}
	d = b.prepare(b.request(1, disk.Spec{Image: b.add("again", diskContent()), Size: 40 << 20})).Devices[0]
	qemuIO(t, d.Path, "qcow2", "read -P 4 0 40M", "write -P 5 40M 24M", "read -P 5 40M 24M")
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
}

// TestBlockDevicesAreSavedAndStashed: what a machine wrote to its block devices is in the new image, and in the stash.
func TestBlockDevicesAreSavedAndStashed(t *testing.T) {
	labtest.Root(t, "qemu-io", "qemu-img", "blkid")
	b, v := onBlocks(t, false)
	content := diskContent()
	img := b.add("tiny", content)
	r := b.request(1, disk.Spec{ID: 0, Image: img}, disk.Spec{ID: 1, Image: img, Mode: "OFFLINE"}, disk.Spec{ID: 2, Volatile: "swap", Size: 1 << 20},
		disk.Spec{ID: 3, Volatile: "fs", FS: "ext4", Size: 4 << 20})
	p := b.prepare(r)
	for i, want := range map[int]string{2: "swap", 3: "ext4"} {
		if out, err := exec.Command("blkid", "-p", "-s", "TYPE", "-o", "value", p.Devices[i].Path).Output(); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("disk %d: %q %v", i, out, err)
		}
	}
	qemuIO(t, p.Devices[0].Path, "qcow2", "write -P 9 1M 64k")
	qemuIO(t, p.Devices[1].Path, "raw", "write -P 9 1M 64k")
	want := bytes.Clone(content)
	copy(want[1<<20:], bytes.Repeat([]byte{9}, 64<<10))
	for id, name := range []string{"saved0", "saved1"} {
		saved, err := b.way.SaveAs(t.Context(), 1, "", r.Disks[id], b.repository, name, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := readFile(t, filepath.Join(b.repository.Path, name))
		if int64(len(got)) != saved.Size || !bytes.Equal(got[:len(want)], want) {
			t.Errorf("%s differs", name)
		}
	}
	if err := b.way.Stash(t.Context(), 1, b.dir(1), nil, b.repository); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(b.repository.Path, "machines/1/disk.0")); err != nil || fi.Size() > 2<<20 {
		t.Errorf("the stash of an overlay has all of its volume: %v %v", fi, err)
	}
	b.noVolume(v)
	p, err := b.way.Unstash(t.Context(), r, b.repository, nil)
	if err != nil {
		t.Fatal(err)
	}
	qemuIO(t, p.Devices[0].Path, "qcow2", "read -P 9 1M 64k")
	qemuIO(t, p.Devices[1].Path, "raw", "read -P 9 1M 64k")
	if err := errors.Join(b.way.Remove(t.Context(), 1, ""), b.way.DropStash(t.Context(), 1, b.repository)); err != nil {
		t.Error(err)
	}
	b.noVolume(v)
}
