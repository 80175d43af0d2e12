package inventory

import (
	"slices"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/store"
)

// rows is the mirror of one table. Values are shared with readers and never modified in place.
type rows[T any] map[int]store.Row[T]

func set[T any](r rows[T], table store.Table[T], e store.Event) (int, error) {
	id, ok := table.ID(e.Key)
	if !ok {
		return 0, fault.Errorf(fault.Corrupt, "key %q is not of a %s", e.Key, table.Kind())
	}
	if e.Deleted {
		delete(r, id)
		return id, nil
	}
	row, err := table.Decode(e.Record)
	if err != nil {
		return id, err
	}
	r[id] = row
	return id, nil
}

func get[T any](inv *Inventory, r *rows[T], kind string, id int) (T, error) {
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	row, ok := (*r)[id]
	if !ok {
		return row.Value, fault.Errorf(fault.NotFound, "%s %d does not exist", kind, id)
	}
	return row.Value, nil
}

// all returns the values in the order of their ids.
func all[T any](inv *Inventory, r *rows[T]) []T {
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	ids := make([]int, 0, len(*r))
	for id := range *r {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	values := make([]T, len(ids))
	for i, id := range ids {
		values[i] = (*r)[id].Value
	}
	return values
}

// The readers of the mirror. What they return is shared: never modify what its slices and maps hold.

// Host finds a host.
func (inv *Inventory) Host(id int) (cloud.Host, error) {
	return get(inv, &inv.hosts, cloud.KindHost, id)
}

// AllHosts lists hosts by id.
func (inv *Inventory) AllHosts() []cloud.Host { return all(inv, &inv.hosts) }

// Cluster finds a cluster.
func (inv *Inventory) Cluster(id int) (cloud.Cluster, error) {
	return get(inv, &inv.clusters, cloud.KindCluster, id)
}

// AllClusters lists clusters by id.
func (inv *Inventory) AllClusters() []cloud.Cluster { return all(inv, &inv.clusters) }

// Datastore finds a datastore.
func (inv *Inventory) Datastore(id int) (cloud.Datastore, error) {
	return get(inv, &inv.datastores, cloud.KindDatastore, id)
}

// AllDatastores lists datastores by id.
func (inv *Inventory) AllDatastores() []cloud.Datastore { return all(inv, &inv.datastores) }

// Image finds an image.
func (inv *Inventory) Image(id int) (cloud.Image, error) {
	return get(inv, &inv.images, cloud.KindImage, id)
}

// AllImages lists images by id.
func (inv *Inventory) AllImages() []cloud.Image { return all(inv, &inv.images) }

// Template finds a VM template.
func (inv *Inventory) Template(id int) (cloud.VMTemplate, error) {
	return get(inv, &inv.templates, cloud.KindTemplate, id)
}

// AllTemplates lists VM templates by id.
func (inv *Inventory) AllTemplates() []cloud.VMTemplate { return all(inv, &inv.templates) }

// VM finds a machine.
func (inv *Inventory) VM(id int) (cloud.VM, error) { return get(inv, &inv.vms, cloud.KindVM, id) }

// AllVMs lists machines by id, DONE ones included.
func (inv *Inventory) AllVMs() []cloud.VM { return all(inv, &inv.vms) }

// Network finds a virtual network.
func (inv *Inventory) Network(id int) (cloud.Network, error) {
	return get(inv, &inv.networks, cloud.KindNetwork, id)
}

// AllNetworks lists virtual networks by id.
func (inv *Inventory) AllNetworks() []cloud.Network { return all(inv, &inv.networks) }

// VMsOnHost lists the machines whose record names the host, by id.
func (inv *Inventory) VMsOnHost(host int) []cloud.VM {
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	vms := make([]cloud.VM, 0, len(inv.onHost[host]))
	for id := range inv.onHost[host] {
		vms = append(vms, inv.vms[id].Value)
	}
	slices.SortFunc(vms, func(a, b cloud.VM) int { return a.ID - b.ID })
	return vms
}

// VMRow finds a machine with its revision.
func (inv *Inventory) VMRow(id int) (cloud.VM, int64, error) {
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	row, ok := inv.vms[id]
	if !ok {
		return row.Value, 0, fault.Errorf(fault.NotFound, "vm %d does not exist", id)
	}
	return row.Value, row.Revision, nil
}

// VMRows lists machines with their revisions that keep lets through, by id.
func (inv *Inventory) VMRows(keep func(*cloud.VM) bool) []store.Row[cloud.VM] {
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	var found []store.Row[cloud.VM]
	for _, row := range inv.vms {
		if keep(&row.Value) {
			found = append(found, row)
		}
	}
	slices.SortFunc(found, func(a, b store.Row[cloud.VM]) int { return a.ID - b.ID })
	return found
}
