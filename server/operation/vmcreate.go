package operation

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/server/inventory"
	"hayloft/server/lifecycle"
	"hayloft/store"
)

// CreateVMs is a request for machines.
type CreateVMs struct {
	TemplateID int               // -1: none
	Text       template.Template // the whole template, or what is merged over the registered one
	Name       string            // "%i" in it becomes 0, 1, ...
	Count      int
	Hold       bool
}

// MaxCount bounds one request.
const MaxCount = 10_000

// perCreate machines are made in one transaction: each may need keys for itself, its leases and images.
const perCreate = 30

// CreateVMs makes machines, in transactions of many. All are made or none: those that were made before an
// error are deleted again.
func (o *Operations) CreateVMs(ctx context.Context, r CreateVMs) (ids []int, err error) {
	t := r.Text
	name := r.Name
	if r.TemplateID >= 0 {
		registered, err := o.Inv.Template(r.TemplateID)
		if err != nil {
			return nil, err
		}
		t = registered.Template.Clone()
		t.Merge(r.Text)
		if name == "" {
			name = registered.Name + "-%d"
		}
	}
	if given, ok := t.Get("NAME"); ok && name == "" {
		name = given
		if r.Count > 1 && !strings.Contains(name, "%i") {
			name += "-%i"
		}
	} else if r.Name != "" && r.Count > 1 && !strings.Contains(name, "%i") {
		name += "-%i"
	}
	if name == "" {
		name = "one-%d"
	}
	if r.Count < 1 || r.Count > MaxCount {
		return nil, fault.Errorf(fault.Invalid, "count is %d; it must be 1 to %d", r.Count, MaxCount)
	}
	proto, err := o.prototype(t)
	if err != nil {
		return nil, err
	}
	proto.TemplateID = r.TemplateID
	held, _, err := t.Bool("SUBMIT_ON_HOLD")
	if err != nil {
		return nil, err
	}
	proto.Hold = held || r.Hold
	wishes, err := o.nics(t)
	if err != nil {
		return nil, err
	}
	if r.Count > 1 {
		if err := severalOf(&proto, wishes); err != nil {
			return nil, err
		}
	}
	size := perCreate
	if per := 2 + len(wishes) + 2*len(proto.Disks); per*size > store.MaxOps-20 {
		size = max(1, (store.MaxOps-20)/per)
	}
	for first := 0; first < r.Count; first += size {
		made, err := o.createGroup(ctx, t, proto, wishes, name, first, min(size, r.Count-first))
		ids = append(ids, made...)
		if err != nil {
			return nil, errors.Join(err, o.withdraw(ctx, ids))
		}
	}
	return ids, nil
}

// withdraw deletes machines of a request that could not be carried out whole.
func (o *Operations) withdraw(ctx context.Context, ids []int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	for _, id := range ids {
		errs = append(errs, o.Recover(ctx, id, "delete"))
	}
	return errors.Join(errs...)
}

// severalOf refuses what only one machine can have.
func severalOf(vm *cloud.VM, wishes []wish) error {
	for _, d := range vm.Disks {
		if d.Persistent {
			return fault.Errorf(fault.Invalid, "DISK %d: image %s is persistent: only one machine can use it", d.ID, d.Image)
		}
	}
	for _, w := range wishes {
		if w.ip != "" {
			return fault.Errorf(fault.Invalid, "NIC %d asks for address %s: only one machine can have it", w.nic.ID, w.ip)
		}
	}
	return nil
}

func (o *Operations) createGroup(ctx context.Context, t template.Template, proto cloud.VM, wishes []wish, name string, first, n int) (ids []int, err error) {
	var revision int64
	err = store.Retry(ctx, func() error {
		var tx lifecycle.Txn
		var idConds []store.Cond
		var idOps []store.Op
		var err error
		if ids, idConds, idOps, err = store.NextIDs(ctx, o.Inv.Store, cloud.KindVM, n, 0); err != nil {
			return err
		}
		tx.Conds, tx.Ops = append(tx.Conds, idConds...), append(tx.Ops, idOps...)
		images, err := o.pin(ctx, &proto, &tx)
		if err != nil {
			return err
		}
		leases := &leaser{inv: o.Inv}
		for i, id := range ids {
			vm := proto
			vm.ID = id
			vm.Name = strings.ReplaceAll(strings.ReplaceAll(name, "%i", strconv.Itoa(first+i)), "%d", strconv.Itoa(id))
			if err := o.complete(t, &vm, leases, wishes, images); err != nil {
				return err
			}
			if err := o.write(&vm, &tx); err != nil {
				return err
			}
		}
		revision, err = o.Inv.Store.Txn(ctx, tx.Conds, tx.Ops)
		if fault.Is(err, fault.Busy) {
			// The mirror may lag behind a lease or image that somebody else just took.
			if current, _, e := o.Inv.Store.List(ctx, "next/"); e == nil {
				for _, rec := range current {
					revision = max(revision, rec.Revision)
				}
				if e := o.Inv.WaitFor(ctx, revision); e != nil {
					return e
				}
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	o.Log.Info("vms created", "first", ids[0], "count", len(ids), "name", name)
	return ids, o.Inv.WaitFor(ctx, revision)
}

// pin makes the transaction depend on the images being what they were when the template was read, and
// reports whether all are READY.
func (o *Operations) pin(ctx context.Context, proto *cloud.VM, tx *lifecycle.Txn) (ready bool, err error) {
	ready = true
	if err := o.pinSystem(ctx, proto, tx); err != nil {
		return false, err
	}
	for _, id := range proto.ImageIDs() {
		img, revision, err := o.Inv.Images.Get(ctx, id)
		if err != nil {
			return false, err
		}
		switch img.State {
		case cloud.ImageStateReady:
			proto.Resolve(&img)
		case cloud.ImageStateLocked:
			ready = false
		default:
			return false, fault.Errorf(fault.WrongState, "image %d (%s) is in state %v: %s", id, img.Name, img.State, img.Error)
		}
		tx.Conds = append(tx.Conds, o.Inv.Images.Cond(id, revision))
	}
	return ready, nil
}

// complete gives a machine what is its own: addresses, context, UUID, first state.
func (o *Operations) complete(t template.Template, vm *cloud.VM, leases *leaser, wishes []wish, imagesReady bool) error {
	if err := template.ValidName("VM", vm.Name); err != nil {
		return err
	}
	var err error
	if vm.NICs, err = leases.cards(wishes); err != nil {
		return err
	}
	vm.Disks = slices.Clone(vm.Disks)
	vm.OS.UUID = newUUID()
	if vm.Graphics != nil && vm.Graphics.Port == 0 {
		g := *vm.Graphics
		g.Port = 5900 + vm.ID%59000
		vm.Graphics = &g
	}
	now := o.Now()
	vm.STime, vm.Timing.Submitted = now.Unix(), now.UnixNano()
	if err := o.context(t, vm, leases); err != nil {
		return err
	}
	event := cloud.EventCreated
	switch {
	case !imagesReady:
		event = cloud.EventCreatedCloning
	case vm.Hold:
		event = cloud.EventCreatedHold
	}
	return lifecycle.Apply(vm, event, now)
}

// write adds a new machine and what it holds to a transaction.
func (o *Operations) write(vm *cloud.VM, tx *lifecycle.Txn) error {
	op, err := o.Inv.VMs.PutOp(vm.ID, *vm)
	if err != nil {
		return err
	}
	tx.Add(o.Inv.VMs.Cond(vm.ID, 0), op)
	for _, n := range vm.NICs {
		cond, op, err := inventory.LeaseOps(cloud.Lease{NetworkID: n.NetworkID, Range: n.Range, Index: n.Index, IP: n.IP, MAC: n.MAC,
			VM: vm.ID, NIC: n.ID})
		if err != nil {
			return err
		}
		tx.Add(cond, op)
	}
	for _, d := range vm.Disks {
		if !d.Persistent {
			continue
		}
		key := inventory.PersistentKey(d.ImageID)
		if users := o.ImageUsers(d.ImageID); len(users) > 0 {
			return fault.Errorf(fault.WrongState, "image %d (%s) is persistent and in use by vm %d", d.ImageID, d.Image, users[0])
		}
		if clone, ok := o.cloning(d.ImageID); ok {
			return fault.Errorf(fault.WrongState, "image %d (%s) is persistent and being cloned as image %d (%s)", d.ImageID, d.Image, clone.ID, clone.Name)
		}
		tx.Add(store.Cond{Key: key}, store.Put(key, idText(vm.ID)))
	}
	return nil
}
