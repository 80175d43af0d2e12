package lifecycle

import (
	"hayloft/cloud"
	"hayloft/server/inventory"
	"hayloft/store"
)

// Txn collects one transaction.
type Txn struct {
	Conds []store.Cond
	Ops   []store.Op
}

// Add adds a condition and the operation that it guards.
func (t *Txn) Add(c store.Cond, o store.Op) {
	t.Conds = append(t.Conds, c)
	t.Ops = append(t.Ops, o)
}

// VM writes a machine that was at the revision; one that is done and owes nothing any more gives its
// leases and persistent images back.
func (t *Txn) VM(inv *inventory.Inventory, before, after *cloud.VM, revision int64) error {
	op, err := inv.VMs.PutOp(after.ID, *after)
	if err != nil {
		return err
	}
	t.Add(inv.VMs.Cond(after.ID, revision), op)
	if settled(after) && !settled(before) {
		for _, n := range after.NICs {
			t.Ops = append(t.Ops, store.Del(inventory.LeaseKey(n.NetworkID, n.Range, n.Index)))
		}
		for _, d := range after.Disks {
			if d.Persistent && !d.Released {
				t.Ops = append(t.Ops, store.Del(inventory.PersistentKey(d.ImageID)))
			}
		}
	}
	return nil
}

// settled reports whether nothing of the machine is left anywhere.
func settled(vm *cloud.VM) bool { return vm.State == cloud.StateDone && vm.HostID < 0 }
