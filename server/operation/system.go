package operation

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/expression"
	"hayloft/cloud/fault"
	"hayloft/server/lifecycle"
)

// systemDatastore is where a machine is kept while it is stopped or undeployed: the first system datastore that meets the
// condition; without one, that which always exists.
func (o *Operations) systemDatastore(condition string) (int, error) {
	if strings.TrimSpace(condition) == "" {
		return cloud.SystemDatastore, nil
	}
	wanted, err := expression.ParseBool(condition)
	if err != nil {
		return 0, fault.Errorf(fault.Invalid, "%w", err)
	}
	var names []string
	for _, ds := range o.Inv.AllDatastores() {
		if ds.Type != cloud.DatastoreTypeSystem {
			continue
		}
		if wanted.Eval(func(name string) []string { return datastoreValues(&ds, name) }) {
			return ds.ID, nil
		}
		names = append(names, fmt.Sprintf("%d (%s)", ds.ID, ds.Name))
	}
	return 0, fault.Errorf(fault.NotFound, "no system datastore meets %q; there are %s", condition, strings.Join(names, ", "))
}

// datastoreValues looks a name up as OpenNebula does: the datastore's attributes and what it is.
func datastoreValues(ds *cloud.Datastore, name string) []string {
	switch strings.ToUpper(name) {
	case "ID":
		return []string{strconv.Itoa(ds.ID)}
	case "NAME":
		return []string{ds.Name}
	case "DS_MAD":
		return []string{ds.Driver}
	case "CLUSTER_ID":
		var ids []string
		for _, id := range ds.Clusters {
			ids = append(ids, strconv.Itoa(id))
		}
		return ids
	}
	if value, ok := ds.Template.Get(name); ok {
		return []string{value}
	}
	return nil
}

// pinSystem has a machine be made only while its system datastore is there, and whoever is about to delete that look again.
func (o *Operations) pinSystem(ctx context.Context, vm *cloud.VM, tx *lifecycle.Txn) error {
	if vm.System == cloud.SystemDatastore {
		return nil
	}
	ds, revision, err := o.Inv.Datastores.Get(ctx, vm.System)
	if err != nil {
		return err
	}
	op, err := o.Inv.Datastores.PutOp(vm.System, ds)
	if err == nil {
		tx.Add(o.Inv.Datastores.Cond(vm.System, revision), op)
	}
	return err
}

// keeps are the machines that a system datastore is for.
func (o *Operations) keeps(id int) []int {
	var ids []int
	for _, row := range o.Inv.VMRows(func(vm *cloud.VM) bool { return vm.State != cloud.StateDone || vm.HostID >= 0 }) {
		if row.Value.System == id {
			ids = append(ids, row.ID)
		}
	}
	return ids
}
