package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/device"
	"hayloft/disk/export/nbd"
	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/qmp"
	"hayloft/image/qcow2"
	"hayloft/lab/golden"
	"hayloft/lab/labtest"
)

const mib = 1 << 20

// overlayGuest is a Linux guest with an overlay of 8 MiB on a base as /dev/vdb.
func overlayGuest(t *testing.T, id int, base []byte) hypervisor.Machine {
	t.Helper()
	images, err := golden.Build(t.Context(), golden.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := guest(t, id)
	m.MemoryMB = 96
	m.Boot = hypervisor.Boot{Chipset: "pc"}
	own := func(name string, backing string, size int64) device.Device {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(m.Dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := errors.Join(qcow2.Write(f, qcow2.Overlay{Size: size, Backing: backing, BackingFormat: "raw"}), f.Chown(m.UID, m.GID)); err != nil {
			t.Fatal(err)
		}
		return device.Device{Kind: device.File, Path: f.Name(), Format: device.QCOW2}
	}
	below := filepath.Join(m.Dir, "base")
	if err := os.WriteFile(below, base, 0o644); err != nil {
		t.Fatal(err)
	}
	tiny := filepath.Join(m.Dir, "tiny")
	if err := os.Link(images.Disk, tiny); err != nil {
		content, err := os.ReadFile(images.Disk)
		if err == nil {
			err = os.WriteFile(tiny, content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	fi, err := os.Stat(tiny)
	if err != nil {
		t.Fatal(err)
	}
	m.Disks = []hypervisor.Disk{{ID: 0, Target: "vda", Device: own("root", tiny, fi.Size())},
		{ID: 1, Target: "vdb", Device: own("data", below, int64(len(base))), Discard: true}}
	return m
}

func TestSnapshot(t *testing.T) {
	labtest.Root(t, "qemu-img")
	base := noise(8 * mib)
	l := newLab(t)
	m := overlayGuest(t, 60, base)
	l.bootLinux(m)
	l.say(60, "dd if=/dev/zero of=/dev/vdb bs=1M seek=2 count=1 conv=fsync 2>/dev/null; echo first-$?\n", "first-0")
	then := bytes.Clone(base)
	clear(then[2*mib : 3*mib])
	for round := range 2 {
		err := l.d.Snapshot(t.Context(), 60, 1, func(s hypervisor.Snapshot) error {
			l.say(60, fmt.Sprintf("dd if=/dev/vdb of=/dev/vdb bs=1M skip=6 seek=%d count=1 conv=fsync 2>/dev/null; echo later-%d-$?\n", 4+round, round),
				fmt.Sprintf("later-%d-0", round))
			client, err := nbd.Dialer{Depth: true}.Dial(t.Context(), "unix", s.Socket, s.Export)
			if err != nil {
				return err
			}
			defer client.Close()
			got := make([]byte, client.Size())
			if _, err := client.ReadAt(got, 0); err != nil {
				return err
			}
			if !bytes.Equal(got, then) {
				t.Errorf("round %d: not the disk as it was", round)
			}
			own := map[int64]bool{}
			err = client.Depths(t.Context(), 0, client.Size(), func(offset, length int64, depth int) bool {
				for at := offset / mib; at*mib < offset+length; at++ {
					own[at] = own[at] || depth > 0 && depth <= s.Own
				}
				return true
			})
			if err != nil {
				return err
			}
			if !own[2] || !own[4+int64(round)] || own[0] || own[7] {
				t.Errorf("round %d: the machine's own megabytes: %v", round, own)
			}
			return s.Check(t.Context())
		})
		if err != nil {
			t.Fatal(err)
		}
		copy(then[(4+round)*mib:], then[6*mib:7*mib])
	}
	if left := l.snapshots(60); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := l.d.Snapshot(t.Context(), 60, 7, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a disk that it has not: %v", err)
	}
	own := errors.New("own")
	if err := l.d.Snapshot(t.Context(), 60, 0, func(hypervisor.Snapshot) error { return own }); !errors.Is(err, own) {
		t.Error(err)
	}

	// One that died when the device had its disk back already.
	err := l.d.Snapshot(t.Context(), 60, 1, func(hypervisor.Snapshot) error {
		client := l.qmp(60)
		return errors.Join(client.Execute(t.Context(), "nbd-server-stop", nil, nil),
			client.Execute(t.Context(), "blockdev-del", properties{"node-name": snapshotNode(1, "view")}, nil),
			setDrive(t.Context(), client, 1, diskNode(1)))
	})
	if err != nil {
		t.Error(err)
	}
	if left := l.snapshots(60); len(left) > 0 {
		t.Errorf("left after the device had its disk back: %v", left)
	}

	// A driver that dies within leaves it to the next one, and the guest does not notice.
	entered, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- l.d.Snapshot(context.Background(), 60, 1, func(hypervisor.Snapshot) error {
			close(entered)
			<-release
			return nil
		})
	}()
	<-entered
	if left := l.snapshots(60); len(left) == 0 {
		t.Error("a snapshot leaves no traces to look for")
	}
	if err := l.d.Close(); err != nil {
		t.Fatal(err)
	}
	close(release)
	<-ended
	l.d = open(t, l.d.config)
	l.await("the machine is taken over", func() bool { return !l.adopting(60) })
	if left := l.snapshots(60); len(left) > 0 {
		t.Errorf("left by a driver that died: %v", left)
	}
	l.say(60, "dd if=/dev/zero of=/dev/vdb bs=1M seek=1 count=1 conv=fsync 2>/dev/null; echo after-$?\n", "after-0")

	// Off in the middle.
	err = l.d.Snapshot(t.Context(), 60, 1, func(hypervisor.Snapshot) error { return l.d.Kill(t.Context(), 60) })
	if err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(m.Dir, "qemu", "snapshot.*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// qmp is the connection to a running domain.
func (l *lab) qmp(id int) *qmp.Client {
	l.Helper()
	dom, err := l.d.known(id)
	if err != nil {
		l.Fatal(err)
	}
	client, err := l.d.client(l.Context(), dom)
	if err != nil {
		l.Fatal(err)
	}
	return client
}

// snapshots are the traces of snapshots in a running domain.
func (l *lab) snapshots(id int) (found []string) {
	l.Helper()
	dom, err := l.d.known(id)
	if err != nil {
		l.Fatal(err)
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := l.qmp(id).Execute(l.Context(), "query-named-block-nodes", properties{"flat": true}, &nodes); err != nil {
		l.Fatal(err)
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, "save") {
			found = append(found, n.Name)
		}
	}
	files, err := filepath.Glob(dom.record().path("snapshot.*"))
	if err != nil {
		l.Fatal(err)
	}
	return append(found, files...)
}

// TestSnapshotWithoutRoom: the machine goes on, and the snapshot says that it is none any more.
func TestSnapshotWithoutRoom(t *testing.T) {
	labtest.Root(t, "qemu-img")
	l := newLab(t)
	m := overlayGuest(t, 61, noise(8*mib))
	runtime := filepath.Join(m.Dir, "qemu")
	if err := os.Mkdir(runtime, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", runtime, "tmpfs", 0, "size=1m,mode=0711"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(runtime, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l.bootLinux(m)
	err := l.d.Snapshot(t.Context(), 61, 1, func(s hypervisor.Snapshot) error {
		if err := s.Check(t.Context()); err != nil {
			t.Errorf("before anything was written: %v", err)
		}
		l.say(61, "dd if=/dev/zero of=/dev/vdb bs=64k count=64 conv=fsync 2>/dev/null; echo written-$?\n", "written-0")
		return s.Check(t.Context())
	})
	if !fault.Is(err, fault.OutOfSpace) {
		t.Errorf("without room: %v", err)
	}
	l.say(61, "dd if=/dev/vdb bs=64k count=64 2>/dev/null | tr -d '\\0' | wc -c | sed s/^/left-/\n", "left-0")
}
