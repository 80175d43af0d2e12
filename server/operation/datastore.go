package operation

import (
	"context"
	"path/filepath"
	"strconv"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/disk"
	"hayloft/server/lifecycle"
	"hayloft/store"
)

func idText(id int) []byte { return []byte(strconv.Itoa(id)) }

func datastorePath(base string, id int) string { return filepath.Join(base, strconv.Itoa(id)) }

// CreateDatastore makes a datastore from a template: NAME, TYPE (IMAGE_DS, SYSTEM_DS, FILE_DS), DS_MAD (one of
// cloud.DatastoreDriverNames, or OpenNebula's name for it), BASE_PATH, the options of the driver, and for its images
// the defaults CACHE_MODE, CACHE_SIZE, PRELOAD_SIZE, CACHE_FILL and CACHE_FILL_RATE. The storage is not contacted.
func (o *Operations) CreateDatastore(ctx context.Context, t template.Template, cluster int) (int, error) {
	name, err := o.name(t, "datastore")
	if err != nil {
		return 0, err
	}
	kind := cloud.DatastoreTypeImage
	if text, ok := t.Get("TYPE"); ok {
		if kind, err = cloud.ParseDatastoreType(text); err != nil {
			return 0, err
		}
	}
	mad, _ := t.Get("DS_MAD")
	known, err := cloud.LookupDatastoreDriver(mad)
	if err != nil {
		return 0, fault.Errorf(fault.ClassOf(err), "datastore %s: %w", name, err)
	}
	path, _ := t.Get("BASE_PATH")
	if err := known.CheckBase(path); err != nil {
		return 0, fault.Errorf(fault.ClassOf(err), "datastore %s: %w", name, err)
	}
	if kind == cloud.DatastoreTypeSystem && !known.System {
		return 0, fault.Errorf(fault.Unsupported, "datastore %s: a datastore of driver %s cannot be a SYSTEM_DS", name, known.Name)
	}
	driver := known.Name
	if err := lifecycle.CheckRepository(cloud.Datastore{Name: name, Driver: driver, BasePath: path, Template: t}); err != nil {
		return 0, fault.Errorf(fault.ClassOf(err), "datastore %s: %w", name, err)
	}
	if err := checkCaching(cloud.KindDatastore, name, t); err != nil {
		return 0, err
	}
	for _, other := range o.Inv.AllDatastores() {
		if other.Driver == driver && other.BasePath == path && sameServer(driver, other.Template, t) && !known.ReadOnly {
			return 0, fault.Errorf(fault.Exists, "datastore %s: BASE_PATH %s is that of datastore %d (%s)", name, path, other.ID, other.Name)
		}
	}
	if cluster < 0 {
		cluster = cloud.DefaultCluster
	}
	if _, err := o.Inv.Cluster(cluster); err != nil {
		return 0, err
	}
	return create(ctx, o, creation[cloud.Datastore]{
		table: o.Inv.Datastores, first: cloud.FirstDatastore, name: name,
		build: func(id int) (cloud.Datastore, []store.Cond, []store.Op, error) {
			return cloud.Datastore{ID: id, Name: name, Type: kind, Driver: driver, BasePath: path, Clusters: []int{cluster}, Template: t}, nil, nil, nil
		},
	})
}

// sameServer says whether two datastores of a driver are at one storage server, as far as their templates tell.
func sameServer(driver string, a, b template.Template) bool {
	option := map[string]string{"ssh": "HOST", "iscsi": "HOST", "rbd": "CEPH_CONF"}[driver]
	one, _ := a.Get(option)
	other, _ := b.Get(option)
	return one == other
}

// nowhere begins the name of no object.
const nowhere = ".hayloft.nothing"

// Reach asks a datastore's storage, from this server, what it holds; all of it is zero where the storage does not say. The
// error is why it cannot be reached, or does not let us in.
func (o *Operations) Reach(ctx context.Context, ds cloud.Datastore) (disk.Capacity, error) {
	ctx, cancel := context.WithTimeout(ctx, reachPatience)
	defer cancel()
	repo, err := o.repository(ds)
	if err != nil {
		return disk.Capacity{}, err
	}
	capacity, err := repo.Capacity(ctx)
	if err == nil && capacity.Total == 0 { // it may not have asked anybody
		if _, err = repo.List(ctx, nowhere); fault.Is(err, fault.Unsupported) {
			err = nil
		}
	}
	return capacity, err
}

// reachPatience is how long a storage may take to say what it holds.
const reachPatience = 5 * time.Second

// fixedInDatastores are attributes that a datastore has for life.
var fixedInDatastores = []string{"NAME", "TYPE", "DS_MAD", "BASE_PATH"}

// UpdateDatastore replaces a datastore's template, or merges into it. What makes the datastore what it is stays. New
// defaults of caching hold for machines that are made from then on, CACHE_FILL for those that start.
func (o *Operations) UpdateDatastore(ctx context.Context, id int, t template.Template, merge bool) error {
	_, revision, err := o.Inv.Datastores.Update(ctx, id, func(d *cloud.Datastore) error {
		next, err := updated(d.Template, t, merge, fixedInDatastores)
		if err != nil {
			return fault.Errorf(fault.Invalid, "datastore %s: %w", d.Name, err)
		}
		d.Template = next
		if err := lifecycle.CheckRepository(*d); err != nil {
			return err
		}
		return checkCaching(cloud.KindDatastore, d.Name, next)
	})
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}

// updated is a template after an update. Attributes in fixed stay; to ask for another value is an error.
func updated(before, change template.Template, merge bool, fixed []string) (template.Template, error) {
	next := change.Clone()
	for _, name := range fixed {
		was, _ := before.Get(name)
		if value, ok := next.Get(name); ok && value != was {
			return next, fault.Errorf(fault.Invalid, "%s cannot be changed by an update", name)
		}
		next.Delete(name)
		if value, ok := before.Get(name); ok && !merge {
			next.Set(name, value)
		}
	}
	if !merge {
		return next, nil
	}
	all := before.Clone()
	all.Merge(next)
	return all, nil
}

// DeleteDatastore deletes a datastore that holds no image, and no machine is kept in. The directory stays.
func (o *Operations) DeleteDatastore(ctx context.Context, id int) error {
	if id < cloud.FirstDatastore {
		return fault.Errorf(fault.Permission, "datastore %d is one of those that always exist", id)
	}
	return remove(ctx, o, o.Inv.Datastores, id, func(d *cloud.Datastore) string { return d.Name }, nil, func(d *cloud.Datastore) error {
		for _, img := range o.Inv.AllImages() {
			if img.DatastoreID == id {
				return fault.Errorf(fault.Busy, "datastore %s holds image %d (%s)", d.Name, img.ID, img.Name)
			}
		}
		if vms := o.keeps(id); len(vms) > 0 {
			return fault.Errorf(fault.Busy, "datastore %s is the system datastore of %d machines, vm %d among them", d.Name, len(vms), vms[0])
		}
		return nil
	})
}

// CreateCluster makes a cluster.
func (o *Operations) CreateCluster(ctx context.Context, name string) (int, error) {
	return create(ctx, o, creation[cloud.Cluster]{
		table: o.Inv.Clusters, first: 100, name: name,
		build: func(id int) (cloud.Cluster, []store.Cond, []store.Op, error) {
			return cloud.Cluster{ID: id, Name: name}, nil, nil, nil
		},
	})
}

// DeleteCluster deletes a cluster that nothing is in.
func (o *Operations) DeleteCluster(ctx context.Context, id int) error {
	if id < 100 {
		return fault.Errorf(fault.Permission, "cluster %d always exists", id)
	}
	return remove(ctx, o, o.Inv.Clusters, id, func(c *cloud.Cluster) string { return c.Name }, nil, func(c *cloud.Cluster) error {
		for _, h := range o.Inv.AllHosts() {
			if h.ClusterID == id {
				return fault.Errorf(fault.Busy, "cluster %s has host %s", c.Name, h.Name)
			}
		}
		for _, d := range o.Inv.AllDatastores() {
			if contains(d.Clusters, id) {
				return fault.Errorf(fault.Busy, "cluster %s has datastore %s", c.Name, d.Name)
			}
		}
		for _, n := range o.Inv.AllNetworks() {
			if contains(n.Clusters, id) {
				return fault.Errorf(fault.Busy, "cluster %s has network %s", c.Name, n.Name)
			}
		}
		return nil
	})
}
