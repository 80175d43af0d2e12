package operation

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/lifecycle"
	"hayloft/store"
)

// saveName is the name of the image that SAVE_AS asks for; $VMID in it is the machine's id, for machines of one template.
func saveName(vm *cloud.VM, d *cloud.Disk) string {
	return strings.ReplaceAll(d.SaveAs, "$VMID", strconv.Itoa(vm.ID))
}

func checkSaveAs(d *cloud.Disk) error {
	switch {
	case d.SaveAs == "":
		return nil
	case d.ReadOnly || d.CDROM:
		return fault.Errorf(fault.Invalid, "SAVE_AS of a disk that is read-only")
	case d.Persistent:
		return fault.Errorf(fault.Invalid, "SAVE_AS of a persistent image: what is written goes to the image itself")
	}
	return nil
}

// SaveWhenDone has a machine's disk saved as a new image when the machine is terminated, before its disks go; name "" takes
// that back. What is terminated hard, or while its disks are on no host, saves as well or says why it cannot.
func (o *Operations) SaveWhenDone(ctx context.Context, id, diskID int, name string) error {
	return o.change(ctx, id, "disk-saveas", func(vm *cloud.VM) error {
		if vm.State == cloud.StateDone || vm.Orders.Goal == lifecycle.GoalGone {
			return fault.Errorf(fault.WrongState, "This action is not available for state %v", vm.Phase())
		}
		vm.Disks = slices.Clone(vm.Disks)
		at := slices.IndexFunc(vm.Disks, func(d cloud.Disk) bool { return d.ID == diskID })
		if at < 0 {
			return fault.Errorf(fault.NotFound, "it has no disk %d", diskID)
		}
		vm.Disks[at].SaveAs = name
		return checkSaveAs(&vm.Disks[at])
	})
}

// beforeTermination makes the images that a machine's disks are to be saved as, LOCKED, and orders for its host that have to be
// done before anything of it goes.
func (o *Operations) beforeTermination(ctx context.Context, id int) error {
	vm, err := o.Inv.VM(id)
	if err != nil {
		return err
	}
	for _, d := range vm.Disks {
		ordered := slices.ContainsFunc(vm.Orders.Saves, func(s cloud.SaveDisk) bool { return s.BeforeGone && s.Disk == d.ID })
		if d.SaveAs == "" || ordered || unmade(&vm) {
			continue
		}
		if vm.HostID < 0 {
			return fault.Errorf(fault.WrongState, "Error performing action %q: vm %d: disk %d is to be saved as %s, and is in the system datastore: "+
				"resume the machine first, or give the save up (hayloft vm disk-saveas --cancel)", "terminate", id, d.ID, saveName(&vm, &d))
		}
		img := o.savedImage(&vm, &d, saveName(&vm, &d))
		_, err := o.newImage(ctx, img, func(image int) ([]store.Cond, []store.Op, error) {
			vm, revision, err := o.Inv.VMs.Get(ctx, id)
			if err != nil {
				return nil, nil, err
			}
			vm.Orders.Saves = append(slices.Clip(vm.Orders.Saves), cloud.SaveDisk{Operation: uint64(image) + 1, Disk: d.ID, ImageID: image, From: d.ImageID, Size: d.Size, BeforeGone: true})
			op, err := o.Inv.VMs.PutOp(id, vm)
			return []store.Cond{o.Inv.VMs.Cond(id, revision)}, []store.Op{op}, err
		})
		if err != nil {
			return fault.Errorf(fault.ClassOf(err), "Error performing action %q: vm %d: disk %d: save as %s: %w", "terminate", id, d.ID, saveName(&vm, &d), err)
		}
	}
	return nil
}

// unmade says that a machine has no disks yet, or none any more.
func unmade(vm *cloud.VM) bool {
	switch vm.State {
	case cloud.StateInit, cloud.StatePending, cloud.StateHold, cloud.StateCloning, cloud.StateCloningFailure, cloud.StateDone:
		return true
	}
	return vm.State == cloud.StateActive && (vm.LCM == cloud.LCMProlog || vm.LCM == cloud.LCMPrologFailure) || vm.Orders.Goal == lifecycle.GoalGone
}

// savedImage is the record of an image that a disk is about to be saved as.
func (o *Operations) savedImage(vm *cloud.VM, d *cloud.Disk, name string) cloud.Image {
	img := cloud.Image{Name: name, Type: cloud.ImageTypeOS, State: cloud.ImageStateLocked, DatastoreID: cloud.DefaultDatastore,
		RegTime: o.Now().Unix(), SavedFrom: &cloud.SavedFrom{VM: vm.ID, Disk: d.ID}}
	source, err := o.Inv.Image(d.ImageID)
	if err != nil {
		return img
	}
	img.Type = source.Type
	if ds, err := o.Inv.Datastore(source.DatastoreID); err == nil {
		if driver, err := cloud.LookupDatastoreDriver(ds.Driver); err == nil && !driver.ReadOnly {
			img.DatastoreID = source.DatastoreID
		}
	}
	if prefix, ok := source.Template.Get("DEV_PREFIX"); ok {
		img.Template.Set("DEV_PREFIX", prefix)
	}
	return img
}
