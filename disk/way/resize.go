package way

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/image/qcow2"
	"hayloft/internal/command"
)

// Resize implements disk.Way.
func (w *Way) Resize(ctx context.Context, machine int, dir string, diskID int, size int64) error {
	unlock, err := w.lock(ctx, machineTurn(machine))
	if err != nil {
		return err
	}
	defer unlock()
	if err := w.resize(ctx, machine, diskID, roundUp(size, sector)); err != nil {
		return fmt.Errorf("machine %d: disk %d: %w", machine, diskID, err)
	}
	return nil
}

func (w *Way) resize(ctx context.Context, machine, id int, size int64) error {
	r, err := w.recordOf(ctx, machine)
	if err != nil {
		return err
	}
	d := r.disk(id)
	if d == nil {
		return fault.Errorf(fault.NotFound, "no such disk")
	}
	path, err := w.ownPath(ctx, r.Dir, d)
	if err != nil {
		return err
	}
	if d.Kernel != nil { // the next start puts a new one before what is longer then
		err := w.dropKernel(ctx, r, d, nil)
		if err = errors.Join(err, w.putRecord(ctx, r)); err != nil {
			return err
		}
	}
	present := d.Size
	switch {
	case d.Kind == whole:
		return fault.Errorf(fault.Unsupported, "is read-only")
	case d.Kind == persistent && d.Cached:
	case d.Kind == persistent:
		if err := w.growOwned(ctx, machine, d, size); err != nil {
			return err
		}
		d.Size = max(d.Size, size)
		return w.putRecord(ctx, r)
	case d.Kind == volatile, d.Kind == copied:
		if d.Volume != "" {
			break // a volume is longer than what was asked for by what it was rounded up
		}
		fi, err := os.Stat(path)
		if err != nil {
			return err
		}
		present = fi.Size()
	case d.Kind == overlay:
		o, err := readOverlay(path)
		if err != nil {
			return err
		}
		present = o.Size
	}
	if size < present {
		return fault.Errorf(fault.Invalid, "has %d bytes, cannot shrink to %d", present, size)
	}
	grown := record{details: details{Disks: []diskRecord{*d}}}
	before := grown.promised()
	grown.Disks[0].Size = max(d.Size, size)
	more, err := w.store.Reserve(ctx, "disk", grown.promised()-before, 0)
	if err != nil {
		return err
	}
	defer more.Release()
	if d.Kind == persistent && d.Cached {
		return w.resizeVolume(ctx, r, d, size)
	}
	if size > present {
		if d.Volume != "" {
			if err := w.growVolume(ctx, d, size); err != nil {
				return err
			}
		}
		switch {
		case d.Kind == overlay:
			_, err = w.config.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"resize", "-q", "-f", "qcow2", path, strconv.FormatInt(size, 10)}})
		case d.Volume == "" && d.Kind != tree:
			err = growFile(path, size)
		}
		if err != nil {
			return err
		}
	}
	d.Size = max(d.Size, size)
	return w.putRecord(ctx, r)
}

// leaveLimit is how long the data path may take to notice that a machine has gone.
const leaveLimit = 10 * time.Second

// staysConnected is connected, once the connections of who has just gone are.
func (w *Way) staysConnected(ctx context.Context, name string) (bool, error) {
	limit := time.NewTimer(w.leaving)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		open, err := w.connected(ctx, name)
		if err != nil || !open {
			return open, err
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return true, nil
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

// growOwned makes a persistent image longer that the machine has in its repository.
func (w *Way) growOwned(ctx context.Context, machine int, d *diskRecord, size int64) error {
	repo, err := w.open(*d.Repository)
	if err != nil {
		return err
	}
	info, err := repo.Stat(ctx, d.Source)
	if err != nil {
		return err
	}
	if size < info.Size {
		return fault.Errorf(fault.Invalid, "has %d bytes, cannot shrink to %d", info.Size, size)
	}
	if size == info.Size {
		return nil
	}
	path, err := w.ownedPath(ctx, machine, *d)
	if err != nil && !fault.Is(err, fault.Unsupported) {
		return err
	}
	return w.growImage(ctx, repo, machine, path, d, size)
}

// growVolume makes the volume longer that a disk is in, for size bytes of it.
func (w *Way) growVolume(ctx context.Context, d *diskRecord, size int64) error {
	volumes, err := w.volumes(ctx)
	if err != nil {
		return err
	}
	v, err := volumes.Find(ctx, d.Volume)
	if err != nil {
		return err
	}
	fi, err := os.Stat(v.Path)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	need := size
	if d.Kind == overlay {
		need = qcow2.FullSize(size)
	}
	_, err = w.provision(ctx, localstore.VolumeSpec{Name: d.Volume, Size: need, UID: int(st.Uid), GID: int(st.Gid)})
	return err
}

// resizeVolume has the data path open a cache anew, larger.
func (w *Way) resizeVolume(ctx context.Context, r *record, d *diskRecord, size int64) error {
	if d.Size = size; d.Export == nil || d.Export.Volume.Size >= size {
		return w.putRecord(ctx, r)
	}
	data, err := w.data()
	if err != nil {
		return err
	}
	if open, err := w.staysConnected(ctx, d.Export.Name); err != nil || open {
		return errors.Join(err, fault.Errorf(fault.WrongState, "the machine has the disk open"))
	}
	former := *d.Export
	volume := *former.Volume
	volume.Size = size
	if volume.Load == former.Volume.Size {
		volume.Load = size
	}
	larger := former
	larger.Volume = &volume
	if err := data.Unexport(ctx, former.Name); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	d.Export = &larger
	if err := w.putRecord(ctx, r); err != nil {
		return err
	}
	return w.tellExport(ctx, data, larger)
}

// ownedPath is where the file of an image is that the machine has in its repository.
func (w *Way) ownedPath(ctx context.Context, machine int, d diskRecord) (string, error) {
	repo, err := w.open(*d.Repository)
	if err != nil {
		return "", err
	}
	src, err := repo.Open(ctx, d.Source)
	if err != nil {
		return "", err
	}
	defer src.Close()
	local, ok := src.(repository.Local)
	if !ok {
		return "", fault.Errorf(fault.Unsupported, "datastore %d has no local files", d.Repository.ID)
	}
	return local.LocalPath(), nil
}
