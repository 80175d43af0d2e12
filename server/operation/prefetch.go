package operation

import (
	"context"
	"slices"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/inventory"
	"hayloft/store"
)

// perPrefetch wishes are written in one transaction: each compares its host and itself.
const perPrefetch = 50

// Prefetch wishes an image onto hosts, all or (in groups) none, with rate bytes a second at most (0: no bound). One
// that is under way with that rate goes on; one that has ended begins anew, and ends at once where the image still is.
func (o *Operations) Prefetch(ctx context.Context, image int, hosts []int, rate int64) error {
	img, err := o.Inv.Image(image)
	if err != nil {
		return err
	}
	switch {
	case img.State != cloud.ImageStateReady:
		return fault.Errorf(fault.WrongState, "image %s is in state %v", img.Name, img.State)
	case img.Persistent:
		return fault.Errorf(fault.Unsupported, "image %s is persistent: it goes where its one machine is", img.Name)
	case len(hosts) == 0:
		return fault.Errorf(fault.Invalid, "image %s: no hosts to bring it to", img.Name)
	case rate < 0:
		return fault.Errorf(fault.Invalid, "image %s: a rate of %d bytes a second", img.Name, rate)
	}
	hosts = slices.Compact(slices.Sorted(slices.Values(hosts)))
	return o.prefetches(ctx, image, hosts, func(p cloud.Prefetch) (cloud.Prefetch, bool) {
		if p.State == cloud.PrefetchWanted && p.Rate == rate {
			return p, false
		}
		return cloud.Prefetch{ImageID: image, HostID: p.HostID, Serial: p.Serial + 1, Rate: rate, State: cloud.PrefetchWanted,
			Time: o.Now().Unix()}, true
	})
}

// prefetches changes the wishes for an image on hosts that exist.
func (o *Operations) prefetches(ctx context.Context, image int, hosts []int, change func(cloud.Prefetch) (cloud.Prefetch, bool)) error {
	var revision int64
	for group := range slices.Chunk(hosts, perPrefetch) {
		err := store.Retry(ctx, func() error {
			_, at, err := o.Inv.Images.Get(ctx, image)
			if err != nil {
				return err
			}
			conds, ops := []store.Cond{o.Inv.Images.Cond(image, at)}, []store.Op(nil)
			for _, host := range group {
				_, at, err := o.Inv.Hosts.Get(ctx, host)
				if err != nil {
					return err
				}
				key := inventory.PrefetchKey(image, host)
				rec, err := o.Inv.Store.Get(ctx, key)
				if err != nil {
					return err
				}
				before := cloud.Prefetch{ImageID: image, HostID: host}
				if rec.Revision != 0 {
					if before, err = inventory.DecodePrefetch(rec); err != nil {
						return err
					}
				}
				after, changed := change(before)
				if !changed {
					continue
				}
				op, err := inventory.PutPrefetch(after)
				if err != nil {
					return err
				}
				conds = append(conds, o.Inv.Hosts.Cond(host, at), store.Cond{Key: key, Revision: rec.Revision})
				ops = append(ops, op)
			}
			if len(ops) == 0 {
				return nil
			}
			revision, err = o.Inv.Store.Txn(ctx, conds, ops)
			return err
		})
		if err != nil {
			return err
		}
	}
	o.Log.Info("image prefetch", "image", image, "hosts", hosts)
	return o.Inv.WaitFor(ctx, revision)
}

// CancelPrefetch drops the wishes for an image on hosts, whatever became of them; what is there stays. No hosts means
// all of them.
func (o *Operations) CancelPrefetch(ctx context.Context, image int, hosts []int) error {
	if _, err := o.Inv.Image(image); err != nil {
		return err
	}
	ops := o.Inv.DropPrefetches(func(p cloud.Prefetch) bool {
		return p.ImageID == image && (len(hosts) == 0 || slices.Contains(hosts, p.HostID))
	})
	var revision int64
	for group := range slices.Chunk(ops, store.MaxOps) {
		var err error
		if revision, err = o.Inv.Store.Txn(ctx, nil, group); err != nil {
			return err
		}
	}
	return o.Inv.WaitFor(ctx, revision)
}
