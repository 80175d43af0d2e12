package lifecycle

import (
	"context"
	"fmt"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/inventory"
)

// cloned lets machines go on that wait in CLONING for images which are READY now, or have failed.
func (c *Controller) cloned(ctx context.Context, changes []inventory.Change) error {
	relevant := false
	for _, ch := range changes {
		relevant = relevant || ch.Kind != cloud.KindHost
	}
	if !relevant {
		return nil
	}
	for _, row := range c.inv.VMRows(func(vm *cloud.VM) bool { return vm.State == cloud.StateCloning }) {
		_, _, err := c.inv.VMs.Update(ctx, row.ID, func(vm *cloud.VM) error { return c.cloneStep(vm) }, c.fence)
		if err != nil && !fault.Is(err, fault.WrongState) && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// cloneStep is WrongState while there is nothing to do yet.
func (c *Controller) cloneStep(vm *cloud.VM) error {
	var images []cloud.Image
	for _, id := range vm.ImageIDs() {
		img, err := c.inv.Image(id)
		if err == nil && img.State == cloud.ImageStateLocked {
			return fault.Errorf(fault.WrongState, "image %d is still LOCKED", id)
		}
		if err != nil || img.State != cloud.ImageStateReady {
			if err := Apply(vm, cloud.EventCloneFailed, c.now()); err != nil {
				return err
			}
			vm.Error = "an image it needs could not be made: " + img.Name + ": " + img.Error
			return nil
		}
		images = append(images, img)
	}
	for i := range images {
		vm.Resolve(&images[i])
	}
	for i := range vm.Disks { // what could not be checked before the images had a format and a size
		d := &vm.Disks[i]
		ds, err := c.inv.Datastore(d.DatastoreID)
		if d.ImageID < 0 || err != nil {
			continue
		}
		if err := d.CheckCache(vm.Hypervisor, ds.Driver); err != nil {
			message := fmt.Sprintf("DISK %d: %v", d.ID, err)
			if err := Apply(vm, cloud.EventCloneFailed, c.now()); err != nil {
				return err
			}
			vm.Error = message
			return nil
		}
	}
	e := cloud.EventCloneDone
	if vm.Hold {
		e = cloud.EventCloneDoneHold
	}
	return Apply(vm, e, c.now())
}
