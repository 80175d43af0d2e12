package iscsi

import (
	"context"
	"errors"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/lvm"
)

const (
	// copyLimit bounds what copies a whole volume inside the server.
	copyLimit = 24 * time.Hour
	// snapshotChunk is what a snapshot copies at once, in bytes. The kernel remembers each chunk in memory.
	snapshotChunk = 64 << 10
)

// CreateFrom implements repository.Cloner.
func (r *Repository) CreateFrom(ctx context.Context, from, name string) (repository.Writer, repository.CloneKind, error) {
	return r.clone(ctx, from, name, true)
}

// CopyFrom implements repository.Copier.
func (r *Repository) CopyFrom(ctx context.Context, from, name string) (repository.Writer, repository.CloneKind, error) {
	return r.clone(ctx, from, name, false)
}

// how says what a clone of a volume is to be. LVM has no snapshots of snapshots. An image that was once somebody's persistent one
// will be written to again, which snapshots make slow: each of them copies what is overwritten. In a pool a copy serves better.
func (r *Repository) how(v volume, name string, depend bool) (repository.CloneKind, lvm.New) {
	switch {
	case v.Thin:
		return repository.ThinClone, lvm.New{Origin: v.Name}
	case depend && r.pool == "" && !v.Snapshot && v.mark.generation == 0 && r.layered(v.Name, partPrefix+encode(name)):
		return repository.LVMSnapshot, lvm.New{Origin: v.Name, Size: lvm.SnapshotSpace(v.Size, snapshotChunk), Chunk: snapshotChunk}
	default:
		return repository.Copied, lvm.New{Size: v.Size, Pool: r.pool}
	}
}

// layered says whether the names of an origin and its snapshot leave room for what LVM puts behind them for the devices below.
func (r *Repository) layered(origin, snapshot string) bool {
	return lvm.CheckVolume(r.group, origin+"-real") == nil && lvm.CheckVolume(r.group, snapshot+"-cow") == nil
}

func (r *Repository) clone(ctx context.Context, from, name string, depend bool) (repository.Writer, repository.CloneKind, error) {
	if err := r.check(from, name); err != nil {
		return nil, "", err
	}
	v, err := r.settled(ctx, from)
	if err == nil {
		err = r.activate(ctx, v)
	}
	if err == nil {
		err = r.flush(ctx, v)
	}
	if err != nil {
		return nil, "", r.object(from, err)
	}
	kind, n := r.how(v, name, depend)
	w, err := r.create(ctx, name, n)
	if err != nil {
		return nil, "", r.object(name, err)
	}
	w.size, w.least = v.size, v.size
	w.written.set(0, (v.Size+granule-1)/granule)
	if kind == repository.Copied {
		err = r.copy(ctx, v, w)
	}
	if err == nil {
		err = r.same(ctx, v)
	}
	if err == nil && kind == repository.LVMSnapshot && w.identity.OriginUUID != v.UUID {
		err = errChanged()
	}
	if err != nil {
		return nil, "", errors.Join(r.object(from, err), w.Abort())
	}
	return w, kind, nil
}

// settled looks an object up that has all its writes.
func (r *Repository) settled(ctx context.Context, name string) (volume, error) {
	v, err := r.lookup(ctx, name)
	switch {
	case err != nil:
		return v, err
	case v.mark.use == undrained:
		return v, v.mark.public().Busy()
	case v.mark.use == deleting:
		return v, fault.Errorf(fault.Busy, "is being deleted")
	}
	return v, nil
}

// copy has the server copy a volume that is active, past its caches.
func (r *Repository) copy(ctx context.Context, from volume, to *writer) error {
	how := "notrunc,nocreat,fsync"
	if to.pool != "" {
		how += ",sparse"
	}
	_, err := r.run(ctx, copyLimit, "dd", "if="+r.device(from.Name), "of="+r.device(to.identity.Name), "bs=4M", "iflag=direct", "oflag=direct", "conv="+how, "status=none")
	if err != nil {
		if changed := r.same(ctx, from); fault.Is(changed, fault.Busy) {
			return fault.Errorf(fault.Busy, "%w: %w", changed, err)
		}
	}
	return err
}

// same is fault.Busy when somebody wrote to a volume, or may have, since it was looked up.
func (r *Repository) same(ctx context.Context, before volume) error {
	v, err := r.again(ctx, before)
	if fault.Is(err, fault.NotFound) || err == nil && (v.mark != before.mark || v.Name != before.Name) {
		err = errChanged()
	}
	return err
}

func errChanged() error {
	return fault.Errorf(fault.Busy, "was taken, given back, replaced or deleted while it was copied")
}
