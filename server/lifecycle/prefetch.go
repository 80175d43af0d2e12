package lifecycle

import (
	"context"

	"hayloft/cloud"
	"hayloft/server/inventory"
	"hayloft/store"
	"hayloft/wire"
)

// PrefetchCatalog is what Prefetches needs to know.
type PrefetchCatalog interface {
	Catalog
	Prefetches(keep func(cloud.Prefetch) bool) []cloud.Prefetch
}

// Prefetches are all images that are to be brought to a host. Those that cannot be any more are left out.
func Prefetches(host int, c PrefetchCatalog) *wire.Prefetches {
	wanted := c.Prefetches(func(p cloud.Prefetch) bool { return p.HostID == host && p.State == cloud.PrefetchWanted })
	all := &wire.Prefetches{}
	for _, p := range wanted {
		img, err := c.Image(p.ImageID)
		if err != nil || img.State != cloud.ImageStateReady {
			continue
		}
		repository, err := wireRepository(c, img.DatastoreID)
		if err != nil {
			continue
		}
		w := &wire.Image{Id: int64(img.ID), Name: img.Name, Repository: repository, Source: img.Source, Format: img.Format, Digest: img.Digest,
			Size: img.ObjectSize}
		if err := indexOf(w, c); err != nil {
			continue
		}
		all.All = append(all.All, &wire.Prefetch{Serial: p.Serial, Rate: p.Rate, Image: w})
	}
	return all
}

// Prefetches implements fleet.Reports: it records those that have ended. A report about a request that is over
// changes nothing.
func (r *Recorder) Prefetches(ctx context.Context, host int, reports []*wire.PrefetchReport) error {
	for _, report := range reports {
		if !report.Ended {
			continue
		}
		if err := store.Retry(ctx, func() error { return r.prefetchEnded(ctx, host, report) }); err != nil {
			return err
		}
	}
	return nil
}

func (r *Recorder) prefetchEnded(ctx context.Context, host int, report *wire.PrefetchReport) error {
	key := inventory.PrefetchKey(int(report.Image), host)
	rec, err := r.inv.Store.Get(ctx, key)
	if err != nil || rec.Revision == 0 {
		return err
	}
	p, err := inventory.DecodePrefetch(rec)
	if err != nil || p.Serial != report.Serial || p.State != cloud.PrefetchWanted {
		return err
	}
	p.State, p.Done, p.Total = cloud.PrefetchDone, report.Done, report.Total
	if report.Error != "" {
		p.State, p.Error, p.Class = cloud.PrefetchFailed, report.Error, report.ErrorClass
	}
	op, err := inventory.PutPrefetch(p)
	if err != nil {
		return err
	}
	revision, err := r.inv.Store.Txn(ctx, []store.Cond{{Key: key, Revision: rec.Revision}}, []store.Op{op})
	if err != nil {
		return err
	}
	r.log.Info("prefetch "+string(p.State), "image", p.ImageID, "host", host, "error", p.Error)
	return r.inv.WaitFor(ctx, revision)
}
