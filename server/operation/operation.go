// Package operation is what can be asked of the server: each operation with its checks, in one
// transaction. Every face of the API calls these and nothing below them.
package operation

import (
	"context"
	"log/slog"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/server/inventory"
	"hayloft/server/scheduler"
	"hayloft/store"
)

// Operations is safe for concurrent use. Errors carry a fault class and name the object.
type Operations struct {
	Inv       *inventory.Inventory
	Scheduler scheduler.Scheduler
	Log       *slog.Logger
	Now       func() time.Time
	// Open opens repositories, which are not closed here; nil: drivers.Open.
	Open func(disk.Repository) (repository.Repository, error)
}

// creation is what every new object needs.
type creation[T any] struct {
	table store.Table[T]
	first int // id of the very first one
	owner int // whose names must be unique; 0 where names are global
	name  string
	build func(id int) (T, []store.Cond, []store.Op, error)
}

// create allocates an id and a name and writes the object, in one transaction, and returns when the
// mirror shows it.
func create[T any](ctx context.Context, o *Operations, c creation[T]) (int, error) {
	kind := c.table.Kind()
	if err := template.ValidName(kind, c.name); err != nil {
		return 0, err
	}
	nameKey := inventory.NameKey(kind, c.owner, c.name)
	var id int
	var revision int64
	err := store.Retry(ctx, func() error {
		taken, err := o.Inv.Store.Get(ctx, nameKey)
		if err != nil {
			return err
		}
		if taken.Revision != 0 {
			return fault.Errorf(fault.Exists, "%s %q exists already, with id %s", kind, c.name, taken.Value)
		}
		ids, conds, ops, err := store.NextIDs(ctx, o.Inv.Store, kind, 1, c.first)
		if err != nil {
			return err
		}
		id = ids[0]
		value, moreConds, moreOps, err := c.build(id)
		if err != nil {
			return err
		}
		put, err := c.table.PutOp(id, value)
		if err != nil {
			return err
		}
		conds = append(append(conds, store.Cond{Key: nameKey}, c.table.Cond(id, 0)), moreConds...)
		ops = append(append(ops, store.Put(nameKey, idText(id)), put), moreOps...)
		revision, err = o.Inv.Store.Txn(ctx, conds, ops)
		return err
	})
	if err != nil {
		return 0, err
	}
	o.Log.Info(kind+" created", kind, id, "name", c.name)
	return id, o.Inv.WaitFor(ctx, revision)
}

// remove deletes an object and its name if guard lets it; guard sees a mirror that is at least as new as
// the object. What with gives goes too.
func remove[T any](ctx context.Context, o *Operations, table store.Table[T], id int, name func(*T) string, owner func(*T) int, guard func(*T) error, with ...func() []store.Op) error {
	kind := table.Kind()
	var revision int64
	err := store.Retry(ctx, func() error {
		value, at, err := table.Get(ctx, id)
		if err != nil {
			return err
		}
		if err := o.Inv.WaitFor(ctx, at); err != nil {
			return err
		}
		if err := guard(&value); err != nil {
			return err
		}
		own := 0
		if owner != nil {
			own = owner(&value)
		}
		ops := []store.Op{table.DelOp(id), store.Del(inventory.NameKey(kind, own, name(&value)))}
		for _, more := range with {
			ops = append(ops, more()...)
		}
		revision, err = o.Inv.Store.Txn(ctx, []store.Cond{table.Cond(id, at)}, ops)
		return err
	})
	if err != nil {
		return err
	}
	o.Log.Info(kind+" deleted", kind, id)
	return o.Inv.WaitFor(ctx, revision)
}

func (o *Operations) name(t template.Template, kind string) (string, error) {
	name, ok := t.Get("NAME")
	if !ok || name == "" {
		return "", fault.Errorf(fault.Invalid, "%s template has no NAME", kind)
	}
	return name, nil
}

// Bootstrap makes the objects that every installation has: the default cluster and datastores, with
// their directories below base.
func (o *Operations) Bootstrap(ctx context.Context, base string) error {
	var tx struct {
		conds []store.Cond
		ops   []store.Op
	}
	add := func(cond store.Cond, op store.Op, err error) error {
		tx.conds, tx.ops = append(tx.conds, cond), append(tx.ops, op)
		return err
	}
	if _, err := o.Inv.Cluster(cloud.DefaultCluster); err == nil {
		return nil
	}
	cluster := cloud.Cluster{ID: cloud.DefaultCluster, Name: "default"}
	op, err := o.Inv.Clusters.PutOp(cluster.ID, cluster)
	if err := add(o.Inv.Clusters.Cond(cluster.ID, 0), op, err); err != nil {
		return err
	}
	nameKey := inventory.NameKey(cloud.KindCluster, 0, cluster.Name)
	_ = add(store.Cond{Key: nameKey}, store.Put(nameKey, idText(0)), nil)
	for _, ds := range []cloud.Datastore{
		{ID: cloud.SystemDatastore, Name: "system", Type: cloud.DatastoreTypeSystem},
		{ID: cloud.DefaultDatastore, Name: "default", Type: cloud.DatastoreTypeImage},
		{ID: cloud.FilesDatastore, Name: "files", Type: cloud.DatastoreTypeFile},
	} {
		ds.Driver, ds.BasePath, ds.Clusters = "path", datastorePath(base, ds.ID), []int{cloud.DefaultCluster}
		op, err := o.Inv.Datastores.PutOp(ds.ID, ds)
		if err := add(o.Inv.Datastores.Cond(ds.ID, 0), op, err); err != nil {
			return err
		}
		nameKey := inventory.NameKey(cloud.KindDatastore, 0, ds.Name)
		_ = add(store.Cond{Key: nameKey}, store.Put(nameKey, idText(ds.ID)), nil)
	}
	revision, err := o.Inv.Store.Txn(ctx, tx.conds, tx.ops)
	if fault.Is(err, fault.Busy) { // another server was quicker: the mirror may not show it yet
		_, revision, err = o.Inv.Clusters.Get(ctx, cluster.ID)
	}
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}
