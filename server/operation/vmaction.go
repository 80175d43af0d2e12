package operation

import (
	"context"
	"slices"
	"strconv"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/lifecycle"
	"hayloft/server/scheduler"
	"hayloft/store"
)

// actions are what Action accepts: one.vm.action's names.
var actions = []cloud.Event{cloud.EventHold, cloud.EventRelease, cloud.EventPoweroff, cloud.EventPoweroffHard, cloud.EventResume,
	cloud.EventSuspend, cloud.EventStop, cloud.EventUndeploy, cloud.EventUndeployHard, cloud.EventReboot, cloud.EventRebootHard,
	cloud.EventTerminate, cloud.EventTerminateHard}

// Action does one of the named actions to a machine: it takes the first step, and the rest follows.
func (o *Operations) Action(ctx context.Context, id int, name string) error {
	event := cloud.Event(name)
	if !slices.Contains(actions, event) {
		return fault.Errorf(fault.Invalid, "Action %q is not supported", name)
	}
	if event == cloud.EventTerminate || event == cloud.EventTerminateHard {
		if err := o.beforeTermination(ctx, id); err != nil {
			return err
		}
	}
	return o.change(ctx, id, name, func(vm *cloud.VM) error {
		if vm.Hypervisor == "lxc" && vm.State == cloud.StateActive && (event == cloud.EventSuspend || event == cloud.EventStop) {
			return fault.Errorf(fault.Unsupported, "the memory of containers cannot be saved; poweroff and undeploy keep their disks")
		}
		return o.step(vm, event)
	})
}

// step applies an event, and sees to it that some host cleans up what lies in the system datastore.
func (o *Operations) step(vm *cloud.VM, e cloud.Event) error {
	if e == cloud.EventResume || e == cloud.EventRelease {
		for _, d := range vm.Disks {
			if d.Released {
				return fault.Errorf(fault.WrongState, "image %d (%s) was taken from its disk %d by image release; it can only be terminated", d.ImageID, d.Image, d.ID)
			}
		}
	}
	stashed := vm.Stashed && vm.HostID < 0
	if err := lifecycle.Apply(vm, e, o.Now()); err != nil {
		return err
	}
	if stashed && (vm.LCM == cloud.LCMEpilog || vm.State == cloud.StateDone) {
		host, err := o.cleaner(vm)
		if err != nil {
			return err
		}
		vm.HostID = host
		vm.Orders.Goal, vm.Orders.Hard, vm.Orders.Unstash = lifecycle.GoalGone, true, true
		vm.Orders.Epoch++
		vm.Stashed = true
	}
	return nil
}

// cleaner is a host that can delete what a machine left in the system datastore: the last one it was on,
// or any that is connected.
func (o *Operations) cleaner(vm *cloud.VM) (int, error) {
	found := -1
	for _, h := range o.Inv.AllHosts() {
		if h.State != cloud.HostStateMonitored || h.Session == "" {
			continue
		}
		if n := len(vm.History); n > 0 && vm.History[n-1].HostID == h.ID {
			return h.ID, nil
		}
		found = h.ID
	}
	if found < 0 {
		return 0, fault.Errorf(fault.Unavailable, "no host is connected that could delete its disks from the system datastore")
	}
	return found, nil
}

// change reads a machine, lets do change it, and writes it with all that follows from that.
func (o *Operations) change(ctx context.Context, id int, action string, do func(*cloud.VM) error, with ...func(*cloud.VM, *lifecycle.Txn) error) error {
	var revision int64
	err := store.Retry(ctx, func() error {
		vm, at, err := o.Inv.VMs.Get(ctx, id)
		if err != nil {
			return err
		}
		before := vm
		if err := do(&vm); err != nil {
			return fault.Errorf(fault.ClassOf(err), "Error performing action %q: vm %d: %w", action, id, err)
		}
		var tx lifecycle.Txn
		if err := tx.VM(o.Inv, &before, &vm, at); err != nil {
			return err
		}
		for _, w := range with {
			if err := w(&vm, &tx); err != nil {
				return err
			}
		}
		revision, err = o.Inv.Store.Txn(ctx, tx.Conds, tx.Ops)
		if err == nil {
			o.Log.Info("vm "+action, "vm", id, "was", before.Phase().String(), "is", vm.Phase().String())
		}
		return err
	})
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}

// Deploy puts a waiting machine on a named host. With enforce it must fit; without, only the host must be
// able to run it.
func (o *Operations) Deploy(ctx context.Context, id, host int, enforce bool) error {
	target, err := o.Inv.Host(host)
	if err != nil {
		return err
	}
	return o.change(ctx, id, "deploy", func(vm *cloud.VM) error {
		view := &scheduler.Host{Host: target}
		if enforce {
			for _, v := range lifecycle.HostViews(o.Inv) {
				if v.ID == host {
					view = v
				}
			}
			if why := o.Scheduler.Fits(vm, view); why != "" {
				return fault.Errorf(fault.OutOfSpace, "host %s %s", target.Name, why)
			}
		}
		if ok, why := target.Runs(vm.Hypervisor); !ok {
			return fault.Errorf(fault.Unsupported, "host %s %s", target.Name, why)
		}
		return lifecycle.Place(vm, target, o.Now())
	})
}

var recoveries = map[string]cloud.Event{
	"failure": cloud.EventRecoverFailure, "success": cloud.EventRecoverSuccess, "retry": cloud.EventRecoverRetry,
	"delete": cloud.EventRecoverDelete, "recreate": cloud.EventRecoverRecreate, "delete-db": cloud.EventRecoverDeleteDB,
}

// Recover does one of one.vm.recover's operations: failure, success, retry, delete, recreate, delete-db.
func (o *Operations) Recover(ctx context.Context, id int, operation string) error {
	event, ok := recoveries[operation]
	if !ok {
		return fault.Errorf(fault.WrongState, "Wrong recovery operation code: %q", operation)
	}
	return o.change(ctx, id, "recover-"+operation, func(vm *cloud.VM) error {
		if vm.Stashed && vm.HostID < 0 && event == cloud.EventRecoverRecreate {
			return fault.Errorf(fault.WrongState, "its disks are kept in the system datastore; resume or terminate it")
		}
		return o.step(vm, event)
	})
}

// Resize changes what a machine that does not run takes; zero keeps.
func (o *Operations) Resize(ctx context.Context, id int, cpu float64, vcpu, memoryMB int) error {
	if cpu < 0 || vcpu < 0 || memoryMB < 0 || cpu+float64(vcpu+memoryMB) == 0 {
		return fault.Errorf(fault.Invalid, "resize: want CPU, VCPU or MEMORY above 0")
	}
	return o.change(ctx, id, "resize", func(vm *cloud.VM) error {
		if vm.Phase() == cloud.Active(cloud.LCMRunning) {
			return fault.Errorf(fault.Unsupported, "a running machine cannot be resized; power it off first")
		}
		if err := lifecycle.Apply(vm, cloud.EventResize, o.Now()); err != nil {
			return err
		}
		if vm.HostID >= 0 {
			if err := o.roomToGrow(vm, cpu, memoryMB); err != nil {
				return err
			}
		}
		vm.Template = vm.Template.Clone()
		set := func(name string, value string) { vm.Template.Set(name, value) }
		if cpu > 0 {
			vm.CPU = cpu
			set("CPU", number(cpu))
		}
		if vcpu > 0 {
			vm.VCPU = vcpu
			set("VCPU", number(float64(vcpu)))
		}
		if memoryMB > 0 {
			vm.MemoryMB = memoryMB
			set("MEMORY", number(float64(memoryMB)))
		}
		return nil
	})
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// roomToGrow checks that the machine's host has what it would take in addition.
func (o *Operations) roomToGrow(vm *cloud.VM, cpu float64, memoryMB int) error {
	for _, h := range lifecycle.HostViews(o.Inv) {
		if h.ID != vm.HostID {
			continue
		}
		most := scheduler.Capacity(&h.Host)
		if more := cpu - vm.CPU; cpu > 0 && h.Used.CPU+more > most.CPU {
			return fault.Errorf(fault.OutOfSpace, "host %s has %.2f CPU free, %.2f more needed", h.Name, most.CPU-h.Used.CPU, more)
		}
		if more := memoryMB - vm.MemoryMB; memoryMB > 0 && h.Used.MemoryMB+more > most.MemoryMB {
			return fault.Errorf(fault.OutOfSpace, "host %s has %d MB of memory free, %d more needed", h.Name, most.MemoryMB-h.Used.MemoryMB, more)
		}
	}
	return nil
}

// SaveAs saves a machine's disk as a new image, which is LOCKED until that is done.
func (o *Operations) SaveAs(ctx context.Context, id, diskID int, name string) (int, error) {
	vm, err := o.Inv.VM(id)
	if err != nil {
		return 0, err
	}
	at := slices.IndexFunc(vm.Disks, func(d cloud.Disk) bool { return d.ID == diskID })
	if at < 0 {
		return 0, fault.Errorf(fault.NotFound, "vm %d has no disk %d", id, diskID)
	}
	d := vm.Disks[at]
	if vm.HostID < 0 {
		return 0, fault.Errorf(fault.WrongState, "Error performing action %q: vm %d: its disks are on no host; This action is not available for state %v",
			"disk-saveas", id, vm.Phase())
	}
	img := o.savedImage(&vm, &d, name)
	return o.newImage(ctx, img, func(image int) ([]store.Cond, []store.Op, error) {
		vm, revision, err := o.Inv.VMs.Get(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		if err := lifecycle.Apply(&vm, cloud.EventSaveas, o.Now()); err != nil {
			return nil, nil, fault.Errorf(fault.ClassOf(err), "Error performing action %q: vm %d: %w", "disk-saveas", id, err)
		}
		vm.Orders.Saves = append(slices.Clip(vm.Orders.Saves), cloud.SaveDisk{Operation: uint64(image) + 1, Disk: diskID, ImageID: image, From: d.ImageID, Size: d.Size})
		op, err := o.Inv.VMs.PutOp(id, vm)
		return []store.Cond{o.Inv.VMs.Cond(id, revision)}, []store.Op{op}, err
	})
}
