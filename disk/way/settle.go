package way

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/cache"
	"hayloft/disk/localstore"
)

// Settle implements disk.Way.
func (w *Way) Settle(ctx context.Context, machine int, leaves bool, report func(disk.Progress)) error {
	unlock, err := w.lock(ctx, machineTurn(machine))
	if err != nil {
		return err
	}
	defer unlock()
	r, err := w.record(ctx, machine)
	if err != nil || r == nil {
		return err
	}
	if err := w.settleAll(ctx, r, leaves, report); err != nil {
		return fmt.Errorf("machine %d: %w", machine, err)
	}
	return nil
}

// settleAll settles the caches of all disks of a machine; see Settle for leaves.
func (w *Way) settleAll(ctx context.Context, r *record, leaves bool, report func(disk.Progress)) error {
	for i := range r.Disks {
		d := &r.Disks[i]
		if d.Kernel != nil {
			_, err := w.settleKernel(ctx, r, d, drainReport(d, report))
			if err != nil {
				return fmt.Errorf("disk %d: drain %s: %w", d.ID, d.Source, err)
			}
			continue
		}
		// An OFFLINE disk that stays must be able to start again without its repository: its copy is what counts.
		if !d.Cached || !leaves && d.Export != nil && d.Export.Volume.Mode == cache.Offline {
			continue
		}
		err := w.settle(ctx, d, drainReport(d, report))
		if err != nil {
			return fmt.Errorf("disk %d: drain %s: %w", d.ID, d.Source, err)
		}
	}
	return nil
}

func drainReport(d *diskRecord, report func(disk.Progress)) func(done, total int64) {
	if report == nil {
		return func(int64, int64) {}
	}
	return rated(drainStep(d.ID), report)
}

// Exports reports whether a machine on this host has a disk that goes through the data path, which therefore must run.
func (w *Way) Exports(ctx context.Context) (bool, error) {
	machines, err := w.store.Machines(ctx)
	if err != nil {
		return false, err
	}
	for _, m := range machines {
		r, err := decodeRecord(m)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(r.Disks, func(d diskRecord) bool { return d.Export != nil }) {
			return true, nil
		}
	}
	return false, nil
}

// Caches implements disk.Way.
func (w *Way) Caches(ctx context.Context, machine int) ([]disk.Cache, error) {
	r, err := w.record(ctx, machine)
	if err != nil || r == nil {
		return nil, err
	}
	var status blockd.Status
	if slices.ContainsFunc(r.Disks, func(d diskRecord) bool { return d.Export != nil }) {
		data, err := w.data()
		if err != nil {
			return nil, err
		}
		if status, err = data.Status(ctx); err != nil {
			return nil, fmt.Errorf("machine %d: %w", machine, err)
		}
	}
	bases, err := w.Bases(ctx)
	if err != nil {
		return nil, err
	}
	var list []disk.Cache
	for _, d := range r.Disks {
		switch {
		case d.Kernel != nil:
			list = append(list, w.kernelStatus(ctx, &d))
		case d.Cached:
			list = append(list, volumeCache(d, status))
		case d.Kind == copied:
			list = append(list, disk.Cache{Disk: d.ID, Mode: string(cache.Offline), Cached: d.Size, Total: d.Size})
		case d.Digest != "":
			list = append(list, baseCache(d, status, bases))
		}
	}
	slices.SortFunc(list, func(a, b disk.Cache) int { return cmp.Compare(a.Disk, b.Disk) })
	return list, nil
}

// volumeCache is what the data path says of a persistent image.
func volumeCache(d diskRecord, status blockd.Status) disk.Cache {
	c := disk.Cache{Disk: d.ID, Mode: string(d.Mode), Total: d.Size, Error: "the data path does not have it"}
	for _, e := range status.Exports {
		if d.Export == nil || e.Name != d.Export.Name {
			continue
		}
		c.Error = e.Error
		if v := e.Volume; v != nil {
			c.Mode, c.Cached, c.Undrained, c.Degraded = string(v.Mode), v.Cached, v.Undrained, v.Degraded
			c.Error = cmp.Or(e.Error, v.Error)
		}
	}
	return c
}

// baseCache is how much of a clone's base is here.
func baseCache(d diskRecord, status blockd.Status, bases []disk.Base) disk.Cache {
	c := disk.Cache{Disk: d.ID, Mode: string(cmp.Or(d.Mode, cache.Around))}
	for _, b := range bases {
		if b.Digest == d.Digest {
			c.Cached, c.Total = b.Present, b.Total
		}
	}
	for _, b := range status.Bases {
		if b.Digest == d.Digest {
			c.Cached, c.Total = b.Status.Present, b.Status.Total
			if d.Export != nil {
				c.Error = b.Status.Error
			}
		}
	}
	for _, e := range status.Exports {
		if d.Export != nil && e.Name == d.Export.Name {
			c.Error = cmp.Or(e.Error, c.Error)
		}
	}
	return c
}

// isPartial reports whether a clone's base is not whole now.
func (w *Way) isPartial(ctx context.Context, d diskRecord) (bool, error) {
	if d.Digest == "" || d.Kind == tree || d.Kind == copied {
		return false, nil
	}
	path, err := w.store.Find(ctx, d.Digest, localstore.Data)
	return path == "", err
}
