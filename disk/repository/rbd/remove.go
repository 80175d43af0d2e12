package rbd

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// Delete implements repository.Repository. The image loses its name at once; when somebody still reads it, its space
// is given back by a later Sweep.
func (r *Repository) Delete(ctx context.Context, name string) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return r.object(name, r.delete(ctx, name))
}

func (r *Repository) delete(ctx context.Context, name string) error {
	i, err := r.lookup(ctx, name)
	if err != nil {
		return err
	}
	if err := r.claim(ctx, i, ownerLock, deleting); err != nil {
		return err
	}
	if err := r.dropSnapshots(ctx, i); err != nil {
		return errors.Join(err, r.unclaim(context.WithoutCancel(ctx), i, ownerLock, deleting))
	}
	dead := deadPrefix + i.ID + "." + i.Name
	if _, err := r.rbd(ctx, append([]string{"rename", "--image", i.Name}, r.to(dead)...)...); err != nil {
		return errors.Join(err, r.unclaim(context.WithoutCancel(ctx), i, ownerLock, deleting))
	}
	i.Name = dead
	if err := r.remove(context.WithoutCancel(ctx), i); err != nil && !fault.Is(err, fault.Busy) {
		return err
	}
	return nil
}

// remove removes an image without snapshots for good, and the snapshot it is on.
func (r *Repository) remove(ctx context.Context, i rbdImage) error {
	if _, err := r.rbd(ctx, "rm", "--no-progress", "--image", i.Name); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return errors.Join(r.unregister(ctx, i), r.leave(ctx, i.Parent))
}

// leave removes the snapshot that a clone was on.
func (r *Repository) leave(ctx context.Context, p *parent) error {
	if p == nil || p.Pool != r.pool || p.Namespace != r.namespace || !strings.HasPrefix(p.Snapshot, clonePrefix) {
		return nil
	}
	if ours, err := r.ours(ctx, p.ID); err != nil || !ours {
		return err
	}
	return r.dropSnapshot(ctx, p.Image, p.Snapshot)
}

func (r *Repository) dropSnapshot(ctx context.Context, image, snapshot string) error {
	_, err := r.rbd(ctx, "snap", "unprotect", "--image", image, "--snap", snapshot)
	if err != nil && !fault.Is(err, fault.NotFound) && !strings.Contains(err.Error(), "already unprotected") {
		return err
	}
	_, err = r.rbd(ctx, "snap", "rm", "--no-progress", "--image", image, "--snap", snapshot)
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	return err
}

// child is one line of "rbd children".
type child struct {
	Pool      string `json:"pool"`
	Namespace string `json:"pool_namespace"`
	Image     string `json:"image"`
	Trash     bool   `json:"trash"`
}

// dropSnapshots removes the snapshots of clones that are no more: fault.Busy names those that are, and snapshots that
// are not ours.
func (r *Repository) dropSnapshots(ctx context.Context, i rbdImage) error {
	var snapshots []struct {
		Name string `json:"name"`
	}
	if err := r.ask(ctx, &snapshots, "snap", "ls", "--image", i.Name); err != nil || len(snapshots) == 0 {
		return err
	}
	var children []child
	if err := r.ask(ctx, &children, "children", "--image", i.Name); err != nil {
		return err
	}
	var users []string
	for _, c := range children {
		here := c.Pool == r.pool && c.Namespace == r.namespace
		if here && strings.HasPrefix(c.Image, deadPrefix) && r.drop(ctx, c.Image) == nil {
			continue
		}
		if here {
			users = append(users, readable(c.Image))
		} else {
			users = append(users, "image "+c.Pool+"/"+c.Namespace+"/"+c.Image)
		}
	}
	for _, s := range snapshots {
		if !strings.HasPrefix(s.Name, clonePrefix) {
			users = append(users, "snapshot "+s.Name)
		}
	}
	if len(users) > 0 {
		slices.Sort(users)
		return fault.Errorf(fault.Busy, "is needed by %s", strings.Join(users, ", "))
	}
	for _, s := range snapshots {
		if err := r.dropSnapshot(ctx, i.Name, s.Name); err != nil {
			return err
		}
	}
	return nil
}

// drop removes an unfinished image that nobody watches any more: fault.Busy when somebody does, or it is not ours.
func (r *Repository) drop(ctx context.Context, image string) error {
	i, err := r.info(ctx, image)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	mine, err := r.ours(ctx, i.ID)
	if err == nil && !mine && i.Parent != nil && strings.HasPrefix(i.Parent.Snapshot, clonePrefix) {
		mine, err = r.ours(ctx, i.Parent.ID) // died between making and registering it
	}
	if err != nil {
		return err
	}
	if !mine && i.Size > 0 {
		return fault.Errorf(fault.Busy, "the pool has an image %q (id %s) that is not Hayloft's: it is left alone", image, i.ID)
	}
	watchers, err := r.watchers(ctx, image)
	if err == nil && len(watchers) > 0 {
		err = fault.Errorf(fault.Busy, "is being written by another operation")
	}
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return r.remove(ctx, i)
}

// sweepAfter is the age at which a snapshot without a clone is what a dead writer left.
const sweepAfter = 10 * time.Minute

// Sweep implements repository.Sweeper.
func (r *Repository) Sweep(ctx context.Context, prefix string) error {
	if err := r.sweep(ctx, prefix); err != nil {
		return fault.Errorf(fault.ClassOf(err), "%s: %w", r.label, err)
	}
	return nil
}

func (r *Repository) sweep(ctx context.Context, prefix string) error {
	var all []listed // also parts whose writer died before they were registered
	if err := r.ask(ctx, &all, "ls", "-l"); err != nil {
		return err
	}
	var errs []error
	for _, l := range all {
		if name, ok := unfinished(l.Image); ok && l.Snapshot == "" && strings.HasPrefix(name, prefix) {
			if err := r.drop(ctx, l.Image); err != nil && !fault.Is(err, fault.Busy) {
				errs = append(errs, err)
			}
		}
	}
	for _, l := range all {
		name, ok := decode(l.Image)
		if !ok || l.Snapshot == "" || !strings.HasPrefix(name, prefix) || !old(l.Snapshot) {
			continue
		}
		if ours, err := r.ours(ctx, l.ID); err != nil || !ours {
			errs = append(errs, err)
			continue
		}
		if err := r.dropSnapshot(ctx, l.Image, l.Snapshot); err != nil && !fault.Is(err, fault.Busy) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// old reads the age of a snapshot of ours.
func old(snapshot string) bool {
	rest, ok := strings.CutPrefix(snapshot, clonePrefix)
	text, _, _ := strings.Cut(rest, ".")
	seconds, err := strconv.ParseInt(text, 10, 64)
	return ok && err == nil && time.Since(time.Unix(seconds, 0)) > sweepAfter
}
