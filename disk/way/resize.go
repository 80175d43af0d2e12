package way

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/command"
)

// Resize implements disk.Way.
func (w *Way) Resize(ctx context.Context, machine int, dir string, diskID int, size int64) error {
	unlock, err := w.lock(ctx, machine)
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
	path := diskPath(r.Dir, id)
	present := d.Size
	switch d.Kind {
	case whole:
		return fault.Errorf(fault.Unsupported, "is read-only")
	case persistent:
		if path, err = w.ownedPath(ctx, machine, *d); err != nil {
			return err
		}
		fallthrough
	case volatile:
		fi, err := os.Stat(path)
		if err != nil {
			return err
		}
		present = fi.Size()
	case overlay:
		o, err := readOverlay(path)
		if err != nil {
			return err
		}
		present = o.Size
	}
	if size < present {
		return fault.Errorf(fault.Invalid, "has %d bytes, cannot shrink to %d", present, size)
	}
	more, err := w.store.Reserve(ctx, "disk", max(0, size-d.Size), 0)
	if err != nil {
		return err
	}
	defer more.Release()
	if size > present {
		switch d.Kind {
		case overlay:
			_, err = w.config.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"resize", "-q", "-f", "qcow2", path, strconv.FormatInt(size, 10)}})
		case persistent, volatile:
			err = growFile(path, size)
		}
		if err != nil {
			return err
		}
	}
	d.Size = max(d.Size, size)
	return w.putRecord(ctx, r)
}

// ownedPath is where the file of a persistent image is that the machine has.
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
