package operation

import (
	"context"
	"slices"
	"strconv"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/server/inventory"
	"hayloft/server/lifecycle"
	"hayloft/store"
)

// markPatience is how long a repository may take to say who owns an image.
const markPatience = 5 * time.Second

func (o *Operations) repository(ds cloud.Datastore) (repository.Repository, error) {
	open := o.Open
	if open == nil {
		open = drivers.Open
	}
	return open(lifecycle.RepositoryOf(ds))
}

func (o *Operations) writable(img *cloud.Image) (repository.Writable, error) {
	ds, err := o.Inv.Datastore(img.DatastoreID)
	if err != nil {
		return nil, err
	}
	repo, err := o.repository(ds)
	if err != nil {
		return nil, err
	}
	w, ok := repo.(repository.Writable)
	if !ok || !img.Persistent {
		return nil, fault.Errorf(fault.Unsupported, "image %d (%s) is not persistent: nobody owns it", img.ID, img.Name)
	}
	return w, nil
}

// ImageMark reads who owns a persistent image in its repository; fault.NotFound when nobody does.
func (o *Operations) ImageMark(ctx context.Context, img *cloud.Image) (repository.Mark, error) {
	w, err := o.writable(img)
	if err != nil {
		return repository.Mark{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, markPatience)
	defer cancel()
	return w.Marked(ctx, img.Source)
}

// ReleaseImage takes a persistent image from an owner that never comes back: its mark in the repository, and the
// machine's hold on it here. Errors: fault.Busy when the owner is a machine that may be alive, and when it has writes
// that the repository lacks, unless acceptStale gives these up; fault.NotFound when nobody holds the image.
func (o *Operations) ReleaseImage(ctx context.Context, id int, acceptStale bool) error {
	img, err := o.Inv.Image(id)
	if err != nil {
		return err
	}
	w, err := o.writable(&img)
	if err != nil {
		return err
	}
	mark, err := o.ImageMark(ctx, &img)
	marked := err == nil
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := o.mayRelease(&img, mark, marked, acceptStale); err != nil {
		return err
	}
	if marked {
		if err := w.Break(ctx, img.Source, acceptStale); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		o.Log.Warn("image taken from its owner", "image", id, "host", mark.Host, "vm", mark.Machine, "generation", mark.Generation,
			"undrained", mark.Undrained)
	}
	released := false
	for _, user := range o.holders(id) {
		if user.alive {
			continue
		}
		if err := o.takeFrom(ctx, user.vm.ID, id); err != nil {
			return err
		}
		released = true
	}
	if !marked && !released {
		return fault.Errorf(fault.NotFound, "image %d (%s): nobody owns it", id, img.Name)
	}
	return nil
}

func (o *Operations) mayRelease(img *cloud.Image, mark repository.Mark, marked, acceptStale bool) error {
	for _, user := range o.holders(img.ID) {
		if !user.alive || marked && user.vm.ID != mark.Machine {
			continue // it is not the owner: it may be waiting for just this
		}
		if !marked {
			return fault.Errorf(fault.Busy, "image %d (%s) is held by vm %d (%s), which is %v: terminate that", img.ID, img.Name,
				user.vm.ID, user.vm.Name, user.vm.Phase())
		}
		return fault.Errorf(fault.Busy, "image %d (%s) is in use by vm %d (%s) on host %s, which is %v: power it off or terminate it",
			img.ID, img.Name, user.vm.ID, user.vm.Name, mark.Host, user.vm.Phase())
	}
	if marked && mark.Undrained && !acceptStale {
		return fault.Errorf(fault.Busy, "image %d (%s): host %s has writes of machine %d (generation %d) that the image has not yet; "+
			"they are lost for it with --accept-stale", img.ID, img.Name, mark.Host, mark.Machine, mark.Generation)
	}
	return nil
}

// holder is a machine with a disk of a persistent image.
type holder struct {
	vm    cloud.VM
	alive bool // it runs, or may be started again where it is, as far as is known here
}

func (o *Operations) holders(image int) []holder {
	var found []holder
	for _, id := range o.ImageUsers(image) {
		vm, err := o.Inv.VM(id)
		if err == nil {
			found = append(found, holder{vm, o.mayLive(&vm)})
		}
	}
	return found
}

// mayLive says of a machine that is DONE (and only owes its host a clean-up), or on a host that is away and has been
// given up, that it does not.
func (o *Operations) mayLive(vm *cloud.VM) bool {
	if vm.State == cloud.StateDone {
		return false
	}
	if vm.HostID < 0 {
		return true
	}
	host, err := o.Inv.Host(vm.HostID)
	if err != nil {
		return false
	}
	return host.Session != "" || host.State == cloud.HostStateMonitored && vm.LCM != cloud.LCMUnknown
}

// takeFrom has a machine hold the image no longer, so that another one can.
func (o *Operations) takeFrom(ctx context.Context, vmID, image int) error {
	return o.change(ctx, vmID, "image-release", func(vm *cloud.VM) error {
		vm.Disks = slices.Clone(vm.Disks)
		for i := range vm.Disks {
			if vm.Disks[i].ImageID == image {
				vm.Disks[i].Released = true
			}
		}
		return nil
	}, func(vm *cloud.VM, tx *lifecycle.Txn) error {
		key := inventory.PersistentKey(image)
		rec, err := o.Inv.Store.Get(ctx, key)
		if err != nil || rec.Revision == 0 || string(rec.Value) != strconv.Itoa(vm.ID) {
			return err
		}
		tx.Add(store.Cond{Key: key, Revision: rec.Revision}, store.Del(key))
		return nil
	})
}
