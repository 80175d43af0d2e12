package iscsi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/internal/lvm"
)

// volumes lists the group. A group that is not there is trouble of the server: nothing is known about objects then.
func (r *Repository) volumes(ctx context.Context) ([]lvm.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.As(fault.Unavailable, err)
	}
	all, err := r.tools(ctx).Volumes(ctx, r.group)
	if fault.Is(err, fault.NotFound) {
		err = fault.As(fault.Unavailable, err)
	}
	// One of several segments may be listed several times.
	seen := map[string]bool{}
	all = slices.DeleteFunc(all, func(v lvm.Volume) bool {
		again := seen[v.UUID]
		seen[v.UUID] = true
		return again
	})
	for i := range all {
		if all[i].Snapshot {
			all[i].Size = all[i].OriginSize // as its device is; what it has for changes counts nowhere here
		}
	}
	return all, err
}

// find gives the volume that fits: fault.NotFound, fault.Busy when it is not ours.
func (r *Repository) find(ctx context.Context, fits func(lvm.Volume) bool) (volume, error) {
	all, err := r.volumes(ctx)
	if err != nil {
		return volume{}, err
	}
	i := slices.IndexFunc(all, fits)
	if i < 0 {
		return volume{}, fault.Errorf(fault.NotFound, "there is none")
	}
	return readOurs(all[i])
}

// readOurs is read, and fault.Busy for a volume that is not ours.
func readOurs(v lvm.Volume) (volume, error) {
	if !ours(v) {
		return volume{}, fault.Errorf(fault.Busy, "the group has a volume %s (%s) that is not Hayloft's: it is left alone", v.Name, v.UUID)
	}
	return read(v)
}

func named(name string) func(lvm.Volume) bool {
	return func(v lvm.Volume) bool { return v.Name == name }
}

// lookup gives the volume that an object is.
func (r *Repository) lookup(ctx context.Context, name string) (volume, error) {
	all, err := r.volumes(ctx)
	if err != nil {
		return volume{}, err
	}
	return r.lookupIn(ctx, all, name)
}

func (r *Repository) lookupIn(ctx context.Context, all []lvm.Volume, name string) (volume, error) {
	v, before, err := resolve(all, name)
	if err == nil && v.mark.use == "" { // whoever made it independent has not come to that
		return r.promote(ctx, v, before.mark.generation)
	}
	return v, err
}

// resolve finds the volume that an object is, and the snapshot that was it before, if that is still there.
func resolve(all []lvm.Volume, name string) (v, before volume, err error) {
	none := fault.Errorf(fault.NotFound, "there is none")
	if i := slices.IndexFunc(all, named(objectPrefix+encode(name))); i >= 0 {
		if v, err = readOurs(all[i]); err != nil || v.mark.use != replaced {
			return v, before, err
		}
		before = v
	}
	i := slices.IndexFunc(all, named(copyPrefix+encode(name)))
	if i < 0 || !ours(all[i]) {
		return volume{}, before, none
	}
	if v, err = read(all[i]); err == nil && v.mark.use == "" && before.UUID == "" {
		return volume{}, before, none // it is being filled
	}
	return v, before, err
}

// again looks the same volume up, whatever its name is now.
func (r *Repository) again(ctx context.Context, v volume) (volume, error) {
	return r.find(ctx, func(other lvm.Volume) bool { return other.UUID == v.UUID })
}

// swap replaces tags of a volume, one of which it must have: has. It does nothing when that is not there any more. What came
// of it is what the volume says then.
func (r *Repository) swap(ctx context.Context, v volume, has string, remove, add []string) (volume, error) {
	tools := lvm.Tools{Runner: attended{Repository: r, caller: ctx, selection: selection(v, has)}}
	remove = slices.DeleteFunc(append([]string{has}, remove...), func(tag string) bool { return slices.Contains(add, tag) })
	if err := tools.Retag(ctx, r.group, []string{v.Name}, add, remove); err != nil {
		return v, err
	}
	return r.again(ctx, v)
}

// selection is lvmreport(7)'s: that volume, as long as it has the tag.
func selection(v volume, tag string) string {
	return fmt.Sprintf(`lv_uuid="%s" && lv_tags={"%s"}`, v.UUID, tag)
}

// setMark replaces a mark by another; false when it was no longer the first.
func (r *Repository) setMark(ctx context.Context, v volume, to mark, remove, add []string) (bool, error) {
	v, err := r.swap(ctx, v, v.mark.tag(), remove, append([]string{to.tag()}, add...))
	return err == nil && v.mark == to, err
}

// remove removes a volume for good. Nobody else may have a reason to. fault.Busy when snapshots stand on it: LVM looks at that
// under its lock, as it would remove them too.
func (r *Repository) remove(ctx context.Context, v volume) error {
	tools := lvm.Tools{Runner: attended{Repository: r, caller: ctx, selection: removable(v)}}
	err := tools.Remove(ctx, r.group, v.Name)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil || v.Thin {
		return err
	}
	all, err := r.volumes(ctx)
	if err == nil && slices.ContainsFunc(all, func(other lvm.Volume) bool { return other.UUID == v.UUID && other.IsOrigin }) {
		err = fault.Errorf(fault.Busy, "logical volume %s: snapshots stand on it", v.Name)
	}
	return err
}

// removable is lvmreport(7)'s selection of that volume, unless it is the origin of a snapshot that is not thin.
func removable(v volume) string {
	return fmt.Sprintf(`lv_uuid="%s" && !(lv_role={"thickorigin"})`, v.UUID)
}

// activate sees to it that a volume has its device.
func (r *Repository) activate(ctx context.Context, v volume) error {
	if v.Snapshot && v.Broken {
		return fault.Errorf(fault.Corrupt, "logical volume %s is a snapshot that LVM calls invalid", v.Name)
	}
	if v.Suspended { // by an LVM that died, or still works: this waits for that
		if err := r.tools(ctx).Resume(ctx, r.group, v.Name); err != nil {
			return err
		}
	}
	if v.Active {
		return nil
	}
	name := v.Name
	if v.Snapshot {
		name = v.Origin // they come together, and LVM has to be asked for the origin
	}
	return r.tools(ctx).Activate(ctx, r.group, name)
}

// extend makes a volume longer, in whole granules.
func (r *Repository) extend(ctx context.Context, v volume, size int64) error {
	return r.tools(ctx).Extend(ctx, r.group, v.Name, (size+granule-1)/granule*granule)
}

// Stat implements repository.Repository.
func (r *Repository) Stat(ctx context.Context, name string) (repository.Info, error) {
	if err := r.check(name); err != nil {
		return repository.Info{}, err
	}
	v, err := r.lookup(ctx, name)
	if err != nil {
		return repository.Info{}, r.object(name, err)
	}
	return repository.Info{Name: name, Size: v.size, Modified: v.modified}, nil
}

// List implements repository.Repository.
func (r *Repository) List(ctx context.Context, prefix string) ([]repository.Info, error) {
	all, err := r.volumes(ctx)
	if err != nil {
		return nil, r.whole(err)
	}
	var list []repository.Info
	for _, one := range all {
		name, ok := objectName(one.Name)
		if !ok || !ours(one) || !strings.HasPrefix(name, prefix) {
			continue
		}
		v, _, err := resolve(all, name)
		if err != nil || v.UUID != one.UUID {
			continue // whoever opens it learns what is wrong
		}
		list = append(list, repository.Info{Name: name, Size: v.size, Modified: v.modified})
	}
	slices.SortFunc(list, func(a, b repository.Info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Capacity implements repository.Repository: that of the pool, without one of the group.
func (r *Repository) Capacity(ctx context.Context) (disk.Capacity, error) {
	if r.pool != "" {
		all, err := r.volumes(ctx)
		if err != nil {
			return disk.Capacity{}, r.whole(err)
		}
		p, err := r.poolIn(all)
		if err != nil {
			return disk.Capacity{}, r.whole(err)
		}
		return disk.Capacity{Total: p.Size, Used: p.Taken(), Free: p.Size - p.Taken()}, nil
	}
	g, err := r.tools(ctx).Group(ctx, r.group)
	if fault.Is(err, fault.NotFound) {
		err = fault.As(fault.Unavailable, err)
	}
	if err != nil {
		return disk.Capacity{}, r.whole(err)
	}
	return disk.Capacity{Total: g.Size, Used: g.Size - g.Free, Free: g.Free}, nil
}

// poolIn finds the pool.
func (r *Repository) poolIn(all []lvm.Volume) (lvm.Volume, error) {
	i := slices.IndexFunc(all, named(r.pool))
	switch {
	case i < 0:
		return lvm.Volume{}, fault.Errorf(fault.Unavailable, "POOL %s: the group has none", r.pool)
	case !all[i].IsPool:
		return lvm.Volume{}, fault.Errorf(fault.Unsupported, "POOL %s is a volume, not a thin pool", r.pool)
	case !all[i].Zeroing:
		return lvm.Volume{}, fault.Errorf(fault.Unsupported, "POOL %s does not zero its blocks (lvchange --zero y): volumes would show what was there before", r.pool)
	}
	return all[i], nil
}

// spaceOr makes fault.OutOfSpace of a write that failed because the pool is full.
func (r *Repository) spaceOr(ctx context.Context, pool string, err error) error {
	if !fault.Is(err, fault.Unavailable) || pool == "" {
		return err
	}
	all, lost := r.volumes(ctx)
	if lost != nil {
		return err
	}
	if i := slices.IndexFunc(all, named(pool)); i >= 0 && all[i].DataPercent > 99.9 {
		return fault.Errorf(fault.OutOfSpace, "pool %s is full: %w", pool, err)
	}
	return err
}
