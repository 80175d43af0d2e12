package inventory

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/store"
)

// PrefetchKey is where the wish for an image on a host is kept.
func PrefetchKey(image, host int) string {
	return fmt.Sprintf("%s/%010d/%010d", cloud.KindPrefetch, image, host)
}

// PutPrefetch writes a wish.
func PutPrefetch(p cloud.Prefetch) (store.Op, error) {
	value, err := json.Marshal(p)
	return store.Put(PrefetchKey(p.ImageID, p.HostID), value), err
}

// DecodePrefetch reads a record.
func DecodePrefetch(rec store.Record) (p cloud.Prefetch, err error) {
	if err := json.Unmarshal(rec.Value, &p); err != nil {
		return p, fault.Errorf(fault.Corrupt, "record %s: %w", rec.Key, err)
	}
	return p, nil
}

type prefetch struct {
	cloud.Prefetch
	revision int64
}

// setPrefetch updates the mirror and returns the image and host that the record is about.
func (inv *Inventory) setPrefetch(e store.Event) (image, host int, err error) {
	if _, err := fmt.Sscanf(strings.TrimPrefix(e.Key, cloud.KindPrefetch+"/"), "%d/%d", &image, &host); err != nil {
		return 0, 0, fault.Errorf(fault.Corrupt, "key %q is not of a prefetch", e.Key)
	}
	if e.Deleted {
		delete(inv.prefetches, e.Key)
		return image, host, nil
	}
	p, err := DecodePrefetch(e.Record)
	if err != nil {
		return image, host, err
	}
	inv.prefetches[e.Key] = prefetch{p, e.Revision}
	return image, host, nil
}

// Prefetches lists the wishes that keep lets through, by image and host.
func (inv *Inventory) Prefetches(keep func(cloud.Prefetch) bool) []cloud.Prefetch {
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	var found []cloud.Prefetch
	for _, p := range inv.prefetches {
		if keep(p.Prefetch) {
			found = append(found, p.Prefetch)
		}
	}
	slices.SortFunc(found, func(a, b cloud.Prefetch) int {
		return strings.Compare(PrefetchKey(a.ImageID, a.HostID), PrefetchKey(b.ImageID, b.HostID))
	})
	return found
}

// PrefetchRow finds a wish with its revision; 0 when there is none.
func (inv *Inventory) PrefetchRow(image, host int) (cloud.Prefetch, int64) {
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	p := inv.prefetches[PrefetchKey(image, host)]
	return p.Prefetch, p.revision
}

// DropPrefetches are the operations that delete the wishes which drop lets through.
func (inv *Inventory) DropPrefetches(drop func(cloud.Prefetch) bool) []store.Op {
	var ops []store.Op
	for _, p := range inv.Prefetches(drop) {
		ops = append(ops, store.Del(PrefetchKey(p.ImageID, p.HostID)))
	}
	return ops
}
