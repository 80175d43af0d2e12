package way

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"hayloft/cloud/fault"
	"hayloft/disk/blockd"
	"hayloft/disk/device"
)

// maxSocketPath is how many bytes the path of a unix socket may have (unix(7): 108 with the final zero).
const maxSocketPath = 107

// defaultSockets is a directory of short name that no two local stores share.
func defaultSockets(root string) string {
	sum := sha256.Sum256([]byte(root))
	name := hex.EncodeToString(sum[:4])
	if os.Geteuid() == 0 {
		return filepath.Join("/run/hayloft", name)
	}
	return filepath.Join(os.TempDir(), "hayloft-"+strconv.Itoa(os.Geteuid())+"-"+name)
}

// exportName is unique on the host.
func exportName(machine, id int) string { return fmt.Sprintf("%d.%d", machine, id) }

func socketPath(dir, name string) string { return filepath.Join(dir, name) }

// tellExport has the data path export, in the directory of sockets, which hypervisors pass through.
func (w *Way) tellExport(ctx context.Context, data blockd.Service, e blockd.Export) error {
	w.sockets.RLock()
	defer w.sockets.RUnlock()
	if err := makeSockets(w.config.Sockets); err != nil {
		return err
	}
	return data.Export(ctx, e)
}

func makeSockets(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() || int(fi.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return fault.Errorf(fault.Permission, "directory of sockets %s is not ours", dir)
	}
	return os.Chmod(dir, 0o711)
}

// newExport is an export of one of the machine's disks, with nothing in it yet.
func (p *preparation) newExport(id int) blockd.Export {
	name := exportName(p.request.Machine, id)
	return blockd.Export{Name: name, Kind: blockd.NBD, Path: socketPath(p.way.config.Sockets, name), UID: p.request.UID, GID: p.request.GID}
}

// nbdDevice is what a hypervisor is handed of an export.
func nbdDevice(e blockd.Export, readOnly bool) *device.Device {
	return &device.Device{Kind: device.NBD, Path: e.Path, Format: device.Raw, ReadOnly: readOnly}
}

// alike reports whether two exports ask the data path for the same.
func alike(a, b blockd.Export) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// export has the data path export a base for one of the machine's disks, and remembers it first. An export that differs
// stays when it is of the same bytes and the machine has it open, and goes otherwise.
func (p *preparation) export(ctx context.Context, d *diskRecord, want blockd.Export) error {
	w, former := p.way, d.Export
	data, err := w.data()
	if err != nil {
		return err
	}
	if former != nil && !alike(*former, want) {
		open, err := w.staysConnected(ctx, former.Name)
		switch {
		case err != nil:
			return err
		case open && sameBytes(*former, want):
			want = *former
		case open:
			return fault.Errorf(fault.WrongState, "export %s is in use", former.Name)
		default:
			if err := data.Unexport(ctx, former.Name); err != nil {
				return err
			}
		}
	}
	d.Export = &want
	if err := w.putRecord(ctx, p.record); err != nil {
		return err
	}
	if former == nil {
		p.back.Push(func() error {
			err := data.Unexport(context.WithoutCancel(ctx), want.Name)
			if err == nil {
				err = w.removeSocket(want.Path)
			}
			return p.keepWhenStuck(err)
		})
	}
	return w.tellExport(ctx, data, want)
}

// sameBytes reports whether two exports of images that nobody writes to have the same content.
func sameBytes(a, b blockd.Export) bool {
	digest := func(e blockd.Export) string {
		switch {
		case e.Base != nil:
			return e.Base.Image.Digest
		case e.Direct != nil && e.Direct.ReadOnly:
			return e.Direct.Image.Digest
		}
		return ""
	}
	return digest(a) != "" && digest(a) == digest(b)
}

// keepWhenStuck notes that something of the machine stays here because it could not be taken back.
func (p *preparation) keepWhenStuck(err error) error {
	p.stuck = p.stuck || err != nil
	return err
}

// connected reports whether a hypervisor has an export open.
func (w *Way) connected(ctx context.Context, name string) (bool, error) {
	data, err := w.data()
	if err != nil {
		return false, err
	}
	status, err := data.Status(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(status.Exports, func(e blockd.ExportStatus) bool { return e.Name == name && e.Connections > 0 }), nil
}

// letGo ends exports of bases that the machine's disks need no more: the base has become whole, or the mode another.
// What a machine that runs has open stays until next time.
func (p *preparation) letGo(ctx context.Context) error {
	needed := map[string]bool{}
	for _, dev := range p.result.Devices {
		if dev.Backing != nil {
			dev = *dev.Backing
		}
		if dev.Kind == device.NBD {
			needed[dev.Path] = true
		}
	}
	changed := false
	for _, spec := range p.request.Disks {
		d := p.record.disk(spec.ID)
		if d.Export == nil || d.Export.Volume != nil || needed[d.Export.Path] {
			continue
		}
		if open, err := p.way.connected(ctx, d.Export.Name); err != nil || open {
			if err != nil {
				return err
			}
			continue
		}
		if err := p.way.unexport(ctx, d); err != nil {
			return fmt.Errorf("disk %d: %w", d.ID, err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return p.way.putRecord(ctx, p.record)
}

// unexport ends the export of a base.
func (w *Way) unexport(ctx context.Context, d *diskRecord) error {
	data, err := w.data()
	if err != nil {
		return err
	}
	if err := data.Unexport(ctx, d.Export.Name); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return w.forgetExport(d)
}

// forgetExport removes what an export that has ended may have left.
func (w *Way) forgetExport(d *diskRecord) error {
	err := w.removeSocket(d.Export.Path)
	if err == nil {
		d.Export = nil
	}
	return err
}

func (w *Way) removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if w.sockets.TryLock() { // else one is being made there
		defer w.sockets.Unlock()
		_ = os.Remove(filepath.Dir(path)) // stays when there are others
	}
	return nil
}

// exportAgain makes sure that an export which should be there can be read.
func (w *Way) exportAgain(ctx context.Context, e blockd.Export) error {
	data, err := w.data()
	if err != nil {
		return err
	}
	return w.tellExport(ctx, data, e)
}
