package iscsi

import (
	"context"
	"slices"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/lvm"
)

// DependentKind implements repository.Depender.
func (r *Repository) DependentKind() repository.CloneKind { return repository.LVMSnapshot }

// Parent implements repository.Cloner: only snapshots of thick volumes have one.
func (r *Repository) Parent(ctx context.Context, name string) (string, error) {
	if err := r.check(name); err != nil {
		return "", err
	}
	v, err := r.lookup(ctx, name)
	if err != nil || !v.Snapshot {
		return "", r.object(name, err)
	}
	parent, ok := objectName(v.Origin)
	if !ok {
		return "", r.object(name, fault.Errorf(fault.Corrupt, "is a snapshot of volume %s, which is no object", v.Origin))
	}
	return parent, nil
}

// needed is fault.Busy, and names them, when snapshots stand on a volume of the group: it must not be removed, because LVM removes
// them with it, nor made longer, which LVM does not do. Snapshots that nobody needs any more are removed.
func (r *Repository) needed(ctx context.Context, v volume, all []lvm.Volume) error {
	var children []string
	for _, one := range all {
		if !one.Snapshot || one.OriginUUID != v.UUID {
			continue
		}
		name, err := r.child(ctx, one)
		if err != nil {
			return err
		}
		if name != "" {
			children = append(children, name)
		}
	}
	if len(children) == 0 {
		return nil
	}
	slices.Sort(children)
	return fault.Errorf(fault.Busy, "is needed by %s, of which it is the origin", strings.Join(children, ", "))
}

// child names what stands on a volume; "" when that could be removed.
func (r *Repository) child(ctx context.Context, one lvm.Volume) (string, error) {
	if !ours(one) {
		return "volume " + one.Name + " (not Hayloft's)", nil
	}
	name, finished := nameOf(one.Name, objectPrefix)
	if v, err := read(one); finished && (err != nil || v.mark.use != replaced) {
		return name, nil
	}
	now, err := r.now(ctx)
	if err != nil {
		return "", err
	}
	gone, err := r.tidy(ctx, one, now)
	switch {
	case err != nil && !fault.Is(err, fault.Busy):
		return "", err
	case gone:
		return "", nil
	case finished:
		return name + " (is being made independent)", nil
	}
	if name, unfinished := nameOf(one.Name, partPrefix); unfinished {
		return name + " (is being written)", nil
	}
	return "volume " + one.Name + " (deleted or made independent, but still read)", nil
}

// tidy removes a volume of ours that nobody needs any more, and says whether it did.
func (r *Repository) tidy(ctx context.Context, one lvm.Volume, now int64) (bool, error) {
	v, err := read(one)
	if strings.HasPrefix(one.Name, deadPrefix) {
		if err = r.dropAll(ctx, v, unused); err == nil {
			err = r.remove(ctx, v)
		}
		return err == nil, err
	}
	switch _, unfinished := nameOf(one.Name, partPrefix); {
	case unfinished:
		err = r.takeOver(ctx, one.Name, now)
		return err == nil, err
	case err == nil && v.mark.use == replaced:
		err = r.retire(ctx, v, now)
		if err == nil {
			_, err = r.again(ctx, v)
			return fault.Is(err, fault.NotFound), nil
		}
		return false, err
	}
	return false, nil
}
