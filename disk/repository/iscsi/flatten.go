package iscsi

import (
	"context"
	"errors"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/internal/lvm"
)

// A clone that is made independent gets a volume of its own, under a name of its own (copyPrefix), in steps of which each is one
// change of tags of one volume, so that whoever dies leaves the old or the new:
//
//  1. The new volume is made and filled. It is unfinished, its lease says whose.
//  2. The mark of the snapshot becomes "replaced", unless that is another one by now. From here on the new volume is the object.
//  3. The new volume loses its lease and gets the mark that the snapshot had. Whoever looks the object up does that, too.
//  4. The snapshot loses its name and is removed: now, or by Sweep.

// Flatten implements repository.Cloner. fault.Busy for an image that is in use as a persistent one.
func (r *Repository) Flatten(ctx context.Context, name string) error {
	if err := r.check(name); err != nil {
		return err
	}
	v, err := r.lookup(ctx, name)
	if err != nil || !v.Snapshot {
		return r.object(name, err)
	}
	switch {
	case v.mark.taken():
		err = v.mark.public().Busy()
	case v.mark.use == deleting:
		err = fault.Errorf(fault.Busy, "is being deleted")
	default:
		err = r.flatten(ctx, name, v)
	}
	return r.object(name, err)
}

func (r *Repository) flatten(ctx context.Context, name string, v volume) error {
	if err := r.activate(ctx, v); err != nil {
		return err
	}
	if err := r.flush(ctx, v); err != nil {
		return err
	}
	w, err := r.beside(ctx, name, lvm.New{Size: v.Size, Pool: r.pool})
	if err != nil {
		return err
	}
	if err := r.fill(ctx, w, v); err != nil {
		return errors.Join(err, w.Abort())
	}
	old, unknown, err := r.replace(ctx, v)
	if unknown {
		w.ended = true // what was made stays, it may be the object: else it is Sweep's
		return err
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	if _, err := r.promote(ctx, w.identity, v.mark.generation); err != nil {
		return nil // whoever looks it up does it; until then the snapshot says that it must be done
	}
	return r.bury(ctx, old)
}

// beside makes a volume for the content of a snapshot, with a writer that keeps it alive.
func (r *Repository) beside(ctx context.Context, name string, n lvm.New) (*writer, error) {
	v, err := r.begin(ctx, copyPrefix+encode(name), n)
	if err != nil {
		return nil, err
	}
	return newWriter(context.WithoutCancel(ctx), r, name, v), nil
}

// fill copies a snapshot to the volume beside it, which after that is an object in all but the mark. Its lease is as new as can be.
func (r *Repository) fill(ctx context.Context, w *writer, v volume) error {
	if err := r.copy(ctx, v, w); err != nil {
		return err
	}
	w.cancel()
	w.renewals.Wait()
	now, err := r.now(ctx)
	if err != nil {
		return err
	}
	return w.renew(ctx, lease{now, w.leased().nonce}, []string{sizeTag + strconv.FormatInt(v.size, 10), timeTag + strconv.FormatInt(v.modified.Unix(), 10)})
}

// replace says of a snapshot that the volume beside it is the object from now on, unless it was changed since it was looked up
// (fault.Busy). With unknown nobody can say whether it does.
func (r *Repository) replace(ctx context.Context, v volume) (_ volume, unknown bool, err error) {
	now, err := r.now(ctx)
	if err != nil {
		return v, false, err
	}
	to, l := mark{use: replaced, generation: v.mark.generation}, lease{now, nonce()}
	after, err := r.swap(ctx, v, v.mark.tag(), []string{v.lease.tag()}, []string{to.tag(), l.tag()})
	if fault.Is(err, fault.Unavailable) {
		return v, true, err
	}
	if err != nil {
		last, cancel := parting(ctx)
		defer cancel()
		var lost error
		if after, lost = r.again(last, v); lost != nil && !fault.Is(lost, fault.NotFound) {
			return v, true, err
		}
	}
	switch {
	case after.mark == to && after.lease == l:
		return after, false, nil
	case err == nil || fault.Is(err, fault.NotFound):
		err = errChanged()
	}
	return v, false, err
}

// promote gives the volume that replaces a snapshot its mark.
func (r *Repository) promote(ctx context.Context, v volume, generation uint64) (volume, error) {
	now, err := r.again(ctx, v)
	if err != nil || now.mark.use != "" {
		return now, err
	}
	if now.lease.nonce == "" {
		return now, fault.Errorf(fault.Corrupt, "logical volume %s has lost its tags, it has %q", now.Name, now.Tags)
	}
	now, err = r.swap(ctx, now, now.lease.tag(), nil, []string{mark{use: free, generation: generation}.tag()})
	if err == nil && now.mark.use == "" {
		err = fault.Errorf(fault.Busy, "is being made independent of its parent")
	}
	return now, err
}

// retire removes a snapshot that was replaced by one who died: fault.Busy while he may live.
func (r *Repository) retire(ctx context.Context, v volume, now int64) error {
	if !r.over(v, now) {
		return fault.Errorf(fault.Busy, "is being made independent of its parent")
	}
	name, _ := nameOf(v.Name, objectPrefix)
	if _, err := r.lookup(ctx, name); err != nil && !fault.Is(err, fault.NotFound) { // it may have to be promoted
		return err
	}
	mine := lease{now, nonce()}
	v, err := r.swap(ctx, v, v.lease.tag(), nil, []string{mine.tag()})
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case v.lease != mine:
		return fault.Errorf(fault.Busy, "is being made independent of its parent")
	}
	return r.bury(ctx, v)
}

// detach gives an unfinished clone a volume of its own, of size bytes, since a snapshot cannot become longer. The caller holds mu.
func (w *writer) detach(size int64) error {
	r := w.repository
	if err := r.flush(w.ctx, w.volume); err != nil {
		return err
	}
	own, err := r.beside(w.ctx, w.name, lvm.New{Size: (size + granule - 1) / granule * granule})
	if err != nil {
		return err
	}
	err = r.copy(w.ctx, w.volume, own)
	own.cancel()
	own.renewals.Wait()
	if err != nil {
		return errors.Join(err, own.Abort())
	}
	w.renewing.Lock()
	defer w.renewing.Unlock()
	if err := r.remove(w.ctx, w.identity); err != nil {
		return errors.Join(err, own.Abort())
	}
	w.little.Lock()
	w.lease = own.leased()
	w.little.Unlock()
	w.identity, w.volume = own.identity, own.volume
	if err := r.tools(w.ctx).Rename(w.ctx, r.group, w.volume.Name, partPrefix+encode(w.name)); err != nil {
		w.fail(err)
		return err
	}
	w.identity.Name, w.volume.Name = partPrefix+encode(w.name), partPrefix+encode(w.name)
	return nil
}
