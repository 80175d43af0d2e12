package rbd

import (
	"context"

	"hayloft/cloud/fault"
)

// fence makes sure that those who have an image open can write no more, whatever they sent: the cluster takes nothing
// from their clients any longer. Then it takes the lock of the feature exclusive-lock from the one who had it, so that
// the next need not wait for an answer of the dead.
func (r *Repository) fence(ctx context.Context, i rbdImage) error {
	watchers, err := r.watchers(ctx, i.Name)
	if err != nil || len(watchers) == 0 {
		return err
	}
	for _, address := range watchers {
		if _, err := r.run(ctx, r.limit, "ceph", "osd", "blocklist", "add", address); err != nil {
			return fault.Errorf(fault.ClassOf(err), "keep %s from writing: %w", address, err)
		}
	}
	var locks []struct {
		ID     string `json:"id"`
		Locker string `json:"locker"`
	}
	if err := r.ask(ctx, &locks, "lock", "ls", "--image", i.Name); err != nil {
		return err
	}
	for _, l := range locks {
		_, err := r.rbd(ctx, "lock", "rm", "--image", i.Name, l.ID, l.Locker)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}
