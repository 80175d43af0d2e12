// Package inventory is the server's view of the store: typed tables to write through, and an in-memory
// mirror of every record, kept by one watch, to read from without a round trip. The mirror may be behind;
// decisions that must not be are made by transactions that compare revisions.
package inventory

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/store"
)

// Inventory holds the tables and the mirror. Make it with Open.
type Inventory struct {
	Store      store.Store
	Hosts      store.Table[cloud.Host]
	Clusters   store.Table[cloud.Cluster]
	Datastores store.Table[cloud.Datastore]
	Images     store.Table[cloud.Image]
	Templates  store.Table[cloud.VMTemplate]
	VMs        store.Table[cloud.VM]
	Networks   store.Table[cloud.Network]

	mu         sync.RWMutex
	revision   int64         // the mirror shows the store as of this revision
	advanced   chan struct{} // closed and replaced when revision grows
	hosts      rows[cloud.Host]
	clusters   rows[cloud.Cluster]
	datastores rows[cloud.Datastore]
	images     rows[cloud.Image]
	templates  rows[cloud.VMTemplate]
	vms        rows[cloud.VM]
	networks   rows[cloud.Network]
	leases     map[string]cloud.Lease // by key
	prefetches map[string]prefetch    // by key
	onHost     map[int]map[int]bool   // host id -> vm ids
	subs       map[*Subscription]bool

	log *slog.Logger
}

// Open reads everything once; Run then keeps the mirror fresh.
func Open(ctx context.Context, s store.Store, log *slog.Logger) (*Inventory, error) {
	inv := &Inventory{
		Store:      s,
		Hosts:      store.NewTable[cloud.Host](s, cloud.KindHost),
		Clusters:   store.NewTable[cloud.Cluster](s, cloud.KindCluster),
		Datastores: store.NewTable[cloud.Datastore](s, cloud.KindDatastore),
		Images:     store.NewTable[cloud.Image](s, cloud.KindImage),
		Templates:  store.NewTable[cloud.VMTemplate](s, cloud.KindTemplate),
		VMs:        store.NewTable[cloud.VM](s, cloud.KindVM),
		Networks:   store.NewTable[cloud.Network](s, cloud.KindNetwork),
		advanced:   make(chan struct{}),
		subs:       map[*Subscription]bool{},
		log:        log,
	}
	if err := inv.reload(ctx); err != nil {
		return nil, err
	}
	return inv, nil
}

// Run follows the store until ctx ends. A watch that broke is replaced by a full reload, after which
// every subscriber sees every object as changed, and those as deleted that are not there any more.
func (inv *Inventory) Run(ctx context.Context) error {
	for {
		inv.mu.RLock()
		revision := inv.revision
		inv.mu.RUnlock()
		events, err := inv.Store.Watch(ctx, "", revision)
		if err == nil {
			for batch := range events {
				inv.apply(batch)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		reload := func() error { return fault.As(fault.Busy, inv.reload(ctx)) }
		if err := store.Retry(ctx, reload); err != nil {
			return fmt.Errorf("store cannot be followed: %w", err)
		}
		inv.log.Info("store read again after a broken watch")
	}
}

func (inv *Inventory) reload(ctx context.Context) error {
	records, revision, err := inv.Store.List(ctx, "")
	if err != nil {
		return err
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	before := inv.known()
	inv.hosts, inv.clusters = rows[cloud.Host]{}, rows[cloud.Cluster]{}
	inv.datastores, inv.images = rows[cloud.Datastore]{}, rows[cloud.Image]{}
	inv.templates, inv.vms, inv.networks = rows[cloud.VMTemplate]{}, rows[cloud.VM]{}, rows[cloud.Network]{}
	inv.leases, inv.onHost = map[string]cloud.Lease{}, map[int]map[int]bool{}
	inv.prefetches = map[string]prefetch{}
	for _, rec := range records {
		inv.applyOne(store.Event{Record: rec})
	}
	now := inv.known()
	for c := range before {
		if !now[c] {
			inv.tell(c)
		}
	}
	inv.advance(revision)
	return nil
}

// known are the changes that tell of the end of each object there is, under the lock.
func (inv *Inventory) known() map[Change]bool {
	all := map[Change]bool{}
	gone(all, cloud.KindHost, inv.hosts)
	gone(all, cloud.KindCluster, inv.clusters)
	gone(all, cloud.KindDatastore, inv.datastores)
	gone(all, cloud.KindImage, inv.images)
	gone(all, cloud.KindTemplate, inv.templates)
	gone(all, cloud.KindVM, inv.vms)
	gone(all, cloud.KindNetwork, inv.networks)
	for _, p := range inv.prefetches {
		all[Change{Kind: cloud.KindPrefetch, ID: p.HostID, Deleted: true}] = true
	}
	return all
}

func gone[T any](all map[Change]bool, kind string, r rows[T]) {
	for id := range r {
		all[Change{Kind: kind, ID: id, Deleted: true}] = true
	}
}

func (inv *Inventory) apply(batch []store.Event) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	for _, e := range batch {
		inv.applyOne(e)
		inv.advance(e.Revision)
	}
}

func (inv *Inventory) advance(revision int64) {
	if revision > inv.revision {
		inv.revision = revision
		close(inv.advanced)
		inv.advanced = make(chan struct{})
	}
}

// applyOne updates the mirror with one record, under the lock.
func (inv *Inventory) applyOne(e store.Event) {
	kind, _, _ := strings.Cut(e.Key, "/")
	var err error
	var id int
	switch kind {
	case cloud.KindHost:
		id, err = set(inv.hosts, inv.Hosts, e)
	case cloud.KindCluster:
		id, err = set(inv.clusters, inv.Clusters, e)
	case cloud.KindDatastore:
		id, err = set(inv.datastores, inv.Datastores, e)
	case cloud.KindImage:
		id, err = set(inv.images, inv.Images, e)
	case cloud.KindTemplate:
		id, err = set(inv.templates, inv.Templates, e)
	case cloud.KindNetwork:
		id, err = set(inv.networks, inv.Networks, e)
	case cloud.KindVM:
		id, err = inv.setVM(e)
	case KindLease:
		err = inv.setLease(e)
	case cloud.KindPrefetch: // a change of the host's wishes, and of what is to be shown of the image
		var image int
		if image, id, err = inv.setPrefetch(e); err == nil {
			inv.tell(Change{Kind: cloud.KindImage, ID: image})
		}
	default:
		return
	}
	if err != nil {
		inv.log.Error("record ignored", "key", e.Key, "error", err)
		return
	}
	inv.tell(Change{Kind: kind, ID: id, Deleted: e.Deleted})
}

// tell gives subscribers a change, under the lock.
func (inv *Inventory) tell(c Change) {
	for sub := range inv.subs {
		sub.add(c)
	}
}

func (inv *Inventory) setVM(e store.Event) (int, error) {
	id, ok := inv.VMs.ID(e.Key)
	if ok {
		if old, there := inv.vms[id]; there {
			delete(inv.onHost[old.Value.HostID], id)
		}
	}
	id, err := set(inv.vms, inv.VMs, e)
	if err == nil && !e.Deleted {
		host := inv.vms[id].Value.HostID
		if inv.onHost[host] == nil {
			inv.onHost[host] = map[int]bool{}
		}
		inv.onHost[host][id] = true
	}
	return id, err
}

// WaitFor returns when the mirror shows the store as of revision or later.
func (inv *Inventory) WaitFor(ctx context.Context, revision int64) error {
	for {
		inv.mu.RLock()
		have, advanced := inv.revision, inv.advanced
		inv.mu.RUnlock()
		if have >= revision {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
