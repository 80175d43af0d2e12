package lifecycle

import (
	"context"
	"slices"
	"strings"

	"hayloft/cloud"
	"hayloft/server/inventory"
	"hayloft/server/scheduler"
	"hayloft/store"
)

// HostViews are all hosts with what their machines take of them.
func HostViews(inv *inventory.Inventory) []*scheduler.Host {
	var views []*scheduler.Host
	for _, h := range inv.AllHosts() {
		view := &scheduler.Host{Host: h}
		for _, vm := range inv.VMsOnHost(h.ID) {
			view.Add(&vm)
		}
		views = append(views, view)
	}
	return views
}

// schedule places all machines that wait and can be placed, in transactions of many, and writes to the
// others why they cannot.
func (c *Controller) schedule(ctx context.Context) error {
	waiting := c.inv.VMRows(func(vm *cloud.VM) bool { return vm.State == cloud.StatePending })
	if len(waiting) == 0 {
		return nil
	}
	vms := make([]cloud.VM, len(waiting))
	revisions := make(map[int]int64, len(waiting))
	byID := make(map[int]*cloud.VM, len(waiting))
	for i, row := range waiting {
		vms[i] = row.Value
		revisions[row.ID], byID[row.ID] = row.Revision, &vms[i]
	}
	views := HostViews(c.inv)
	hosts := make(map[int]cloud.Host, len(views))
	for _, v := range views {
		hosts[v.ID] = v.Host
	}
	placed, refused := c.Scheduler.Pass(vms, views)
	for _, p := range placed {
		if err := Place(byID[p.VM], hosts[p.Host], c.now()); err != nil {
			return err
		}
		c.log.Info("vm "+byID[p.VM].Phase().String(), "vm", p.VM, "host", hosts[p.Host].Name)
	}
	changed := make([]int, 0, len(vms))
	for _, p := range placed {
		changed = append(changed, p.VM)
	}
	for id, why := range refused {
		if sameReason(byID[id].SchedMessage, why) {
			continue
		}
		byID[id].SchedMessage = why
		changed = append(changed, id)
	}
	return c.write(ctx, changed, byID, revisions)
}

// sameReason ignores figures, so that machines which wait are not written again each time that another
// one comes or goes.
func sameReason(a, b string) bool {
	digits := func(r rune) rune {
		if r >= '0' && r <= '9' || r == '.' || r == '-' {
			return -1
		}
		return r
	}
	return strings.Map(digits, a) == strings.Map(digits, b)
}

// perTxn keeps a transaction of machines well below the store's limits.
const perTxn = 100

func (c *Controller) write(ctx context.Context, ids []int, vms map[int]*cloud.VM, revisions map[int]int64) error {
	var last int64
	for group := range slices.Chunk(ids, perTxn) {
		tx := Txn{Conds: []store.Cond{c.fence}}
		for _, id := range group {
			op, err := c.inv.VMs.PutOp(id, *vms[id])
			if err != nil {
				return err
			}
			tx.Add(c.inv.VMs.Cond(id, revisions[id]), op)
		}
		revision, err := c.inv.Store.Txn(ctx, tx.Conds, tx.Ops)
		if err != nil {
			return err
		}
		last = revision
	}
	return c.inv.WaitFor(ctx, last)
}
