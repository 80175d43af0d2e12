package operation

import (
	"context"
	"path/filepath"
	"strconv"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/store"
)

func idText(id int) []byte { return []byte(strconv.Itoa(id)) }

func datastorePath(base string, id int) string { return filepath.Join(base, strconv.Itoa(id)) }

// CreateDatastore makes a datastore from a template: NAME, TYPE (IMAGE_DS, SYSTEM_DS, FILE_DS), DS_MAD
// (path; fs and shared are OpenNebula's names for it) and BASE_PATH.
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
	driver, _ := t.Get("DS_MAD")
	switch driver {
	case "", "fs", "shared", "path":
		driver = "path"
	default:
		return 0, fault.Errorf(fault.Unsupported, "datastore %s: DS_MAD %q is not supported; path is", name, driver)
	}
	path, _ := t.Get("BASE_PATH")
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return 0, fault.Errorf(fault.Invalid, "datastore %s: BASE_PATH %q is not a clean absolute path", name, path)
	}
	for _, other := range o.Inv.AllDatastores() {
		if other.Driver == driver && other.BasePath == path {
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

// DeleteDatastore deletes a datastore that holds no image. The directory stays.
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
