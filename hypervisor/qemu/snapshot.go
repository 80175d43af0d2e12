package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export/nbd"
	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/qmp"
	"hayloft/image/qcow2"
	"hayloft/internal/undo"
)

// A snapshot is QEMU's "image fleecing": a copy-before-write filter above the disk keeps in a file what the guest is about
// to overwrite, and that file, on top of the disk, is exported. See QEMU's docs/interop/live-block-operations and
// tests/qemu-iotests/tests/image-fleecing. Nodes of disk N: saveN-file (qcow2, the kept), saveN-filter, saveN-view.

const (
	snapshotSocket = "snapshot.sock"
	snapshotServer = "snapshot" // name of the socket within QEMU
)

func snapshotFile(disk int) string { return fmt.Sprintf("snapshot.%d", disk) }

func snapshotNode(disk int, what string) string { return fmt.Sprintf("save%d-%s", disk, what) }

// Snapshot implements hypervisor.Snapshotter.
func (d *Driver) Snapshot(ctx context.Context, id, disk int, fn func(hypervisor.Snapshot) error) (err error) {
	s, err := d.beginSnapshot(ctx, id, disk)
	if err != nil {
		return fmt.Errorf("domain %d: disk %d: snapshot: %w", id, disk, err)
	}
	err = fn(s)
	// Also when ctx has ended, or the machine would write everything twice for ever.
	if end := d.endSnapshot(context.WithoutCancel(ctx), id, disk); end != nil {
		err = errors.Join(err, fmt.Errorf("domain %d: disk %d: end of snapshot: %w", id, disk, end))
	}
	return err
}

func (d *Driver) beginSnapshot(ctx context.Context, id, disk int) (s hypervisor.Snapshot, err error) {
	ctx, dom, done, err := d.turn(ctx, id)
	if err != nil {
		return s, err
	}
	defer done()
	client, err := d.client(ctx, dom)
	if err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	if err := clearSnapshots(ctx, client, dom.record()); err != nil { // of a driver before this one
		return s, err
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandLimit)
			defer cancel()
			err = errors.Join(interrupted(ctx, err), clearSnapshots(clean, client, dom.record()))
		}
	}()
	size, err := nodeSize(ctx, client, disk)
	if err != nil {
		return s, err
	}
	r := dom.record()
	if err := makeKept(r, disk, size); err != nil {
		return s, err
	}
	if err := filterWrites(ctx, client, r, disk); err != nil {
		return s, err
	}
	if err := serveSnapshot(ctx, client, r, disk); err != nil {
		return s, err
	}
	socket := r.path(snapshotSocket)
	return hypervisor.Snapshot{Socket: socket, Export: snapshotNode(disk, "file"), Own: 2, Check: func(ctx context.Context) error {
		return checkSnapshot(ctx, socket, snapshotNode(disk, "view"))
	}}, nil
}

// nodeSize is how long the disk is, in bytes.
func nodeSize(ctx context.Context, client *qmp.Client, disk int) (int64, error) {
	var nodes []struct {
		Name  string `json:"node-name"`
		Image struct {
			Size int64 `json:"virtual-size"`
		} `json:"image"`
	}
	if err := client.Execute(ctx, "query-named-block-nodes", properties{"flat": true}, &nodes); err != nil {
		return 0, err
	}
	for _, n := range nodes {
		if n.Name == diskNode(disk) {
			return n.Image.Size, nil
		}
	}
	return 0, fault.Errorf(fault.NotFound, "the machine has no such disk")
}

func diskNode(disk int) string { return fmt.Sprintf("disk%d-node", disk) }

// makeKept makes the file for what the guest overwrites, which QEMU opens as the user that it runs as.
func makeKept(r record, disk int, size int64) (err error) {
	var made undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, made.Run())
		}
	}()
	path := r.path(snapshotFile(disk))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	made.Push(func() error { return os.Remove(path) })
	if err := qcow2.Write(f, qcow2.Overlay{Size: size}); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(r.path(consoleLog), &st); err != nil { // which is QEMU's own
		return err
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}

// filterWrites puts the filter between the guest's device and its disk: from then on the snapshot stands.
func filterWrites(ctx context.Context, client *qmp.Client, r record, disk int) error {
	kept, filter := snapshotNode(disk, "file"), snapshotNode(disk, "filter")
	for _, step := range []struct {
		command string
		args    properties
	}{
		{"blockdev-add", properties{"driver": "qcow2", "node-name": kept, "backing": diskNode(disk), "discard": "unmap",
			"file": properties{"driver": "file", "filename": r.path(snapshotFile(disk))}}},
		{"blockdev-add", properties{"driver": "copy-before-write", "node-name": filter, "file": diskNode(disk), "target": kept,
			"on-cbw-error": "break-snapshot"}},
		{"qom-set", properties{"path": devicePath(disk), "property": "drive", "value": filter}},
		{"blockdev-add", properties{"driver": "snapshot-access", "node-name": snapshotNode(disk, "view"), "file": filter}},
	} {
		err := client.Execute(ctx, step.command, step.args, nil)
		if refused := (*qmp.Error)(nil); errors.As(err, &refused) && step.command == "blockdev-add" &&
			(strings.Contains(refused.Description, "Invalid parameter") || strings.Contains(refused.Description, "unexpected")) {
			return fault.As(fault.Unsupported, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func devicePath(disk int) string { return fmt.Sprintf("/machine/peripheral/disk%d", disk) }

// serveSnapshot exports what the filter keeps, over the disk, and the same as QEMU vouches for it.
func serveSnapshot(ctx context.Context, client *qmp.Client, r record, disk int) error {
	listener, err := qmp.ListenSocket(r.path(snapshotSocket))
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := client.SendFile(ctx, snapshotServer, listener); err != nil {
		return err
	}
	address := properties{"type": "fd", "data": properties{"str": snapshotServer}}
	if err := client.Execute(ctx, "nbd-server-start", properties{"addr": address, "max-connections": 16}, nil); err != nil {
		return err
	}
	for _, what := range []string{"file", "view"} {
		node := snapshotNode(disk, what)
		err := client.Execute(ctx, "block-export-add", properties{"type": "nbd", "id": node, "node-name": node, "name": node,
			"writable": false, "allocation-depth": what == "file"}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// checkSnapshot reads a sector of the view, which QEMU refuses once something could not be kept.
func checkSnapshot(ctx context.Context, socket, export string) error {
	client, err := nbd.Dial(ctx, "unix", socket, export)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.ReadAt(make([]byte, 512), 0); err != nil {
		return fault.Errorf(fault.OutOfSpace, "there was no room to keep what the machine overwrote: %w", err)
	}
	return nil
}

func (d *Driver) endSnapshot(ctx context.Context, id, disk int) error {
	ctx, dom, done, err := d.turnAtLast(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer done()
	if dom.process() == nil {
		return removeKept(dom.record())
	}
	client, err := d.client(ctx, dom)
	if err == nil {
		clean, cancel := context.WithTimeout(ctx, commandLimit)
		defer cancel()
		err = clearSnapshots(clean, client, dom.record())
	}
	return d.unlessEnded(ctx, dom, err, nil)
}

// clearSnapshots ends whatever snapshots a QEMU has, and removes their files. It does nothing where there are none.
func clearSnapshots(ctx context.Context, client *qmp.Client, r record) error {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := client.Execute(ctx, "query-named-block-nodes", properties{"flat": true}, &nodes); err != nil {
		return err
	}
	have := map[string]bool{}
	disks := map[int]bool{}
	for _, n := range nodes {
		var disk int
		var what string
		if count, _ := fmt.Sscanf(strings.Replace(n.Name, "-", " ", 1), "save%d %s", &disk, &what); count == 2 {
			have[n.Name], disks[disk] = true, true
		}
	}
	if len(disks) > 0 {
		err := client.Execute(ctx, "nbd-server-stop", nil, nil)
		if refused := (*qmp.Error)(nil); err != nil && !errors.As(err, &refused) { // refused: it does not run
			return err
		}
	}
	for disk := range disks {
		if err := clearSnapshot(ctx, client, disk, have); err != nil {
			return err
		}
	}
	return removeKept(r)
}

func clearSnapshot(ctx context.Context, client *qmp.Client, disk int, have map[string]bool) error {
	remove := func(what string) error {
		node := snapshotNode(disk, what)
		if !have[node] {
			return nil
		}
		return client.Execute(ctx, "blockdev-del", properties{"node-name": node}, nil)
	}
	if err := remove("view"); err != nil {
		return err
	}
	if have[snapshotNode(disk, "filter")] {
		if err := setDrive(ctx, client, disk, diskNode(disk)); err != nil {
			return err
		}
	}
	return errors.Join(remove("filter"), remove("file"))
}

// setDrive gives a device the node, unless it has it: QEMU (block.c, bdrv_replace_child_noperm) fails an assertion when one is
// replaced by itself, and the machine is gone. A driver that died in the middle may have been just before or after it.
func setDrive(ctx context.Context, client *qmp.Client, disk int, node string) error {
	drive := properties{"path": devicePath(disk), "property": "drive"}
	var now string
	if err := client.Execute(ctx, "qom-get", drive, &now); err != nil || now == node {
		return err
	}
	drive["value"] = node
	return client.Execute(ctx, "qom-set", drive, nil)
}

// removeKept removes the files of all snapshots.
func removeKept(r record) error {
	entries, err := os.ReadDir(r.runtimeDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "snapshot.") {
			if err := os.Remove(r.path(e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
