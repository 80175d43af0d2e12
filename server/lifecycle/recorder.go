package lifecycle

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/inventory"
	"hayloft/store"
	"hayloft/wire"
)

// Recorder makes what hosts report durable. It implements fleet.Reports.
type Recorder struct {
	inv *inventory.Inventory
	log *slog.Logger
	now func() time.Time
}

// NewRecorder makes a Recorder.
func NewRecorder(inv *inventory.Inventory, log *slog.Logger) *Recorder {
	return &Recorder{inv: inv, log: log, now: time.Now}
}

// batch is how many machines one transaction carries: each may write itself, leases and images.
const batch = 24

// Machines implements fleet.Reports: all reports in few transactions, or one by one where others write too.
func (r *Recorder) Machines(ctx context.Context, host int, reports []*wire.MachineReport) error {
	for group := range slices.Chunk(reports, batch) {
		err := r.together(ctx, host, group)
		if fault.Is(err, fault.Busy) || fault.Is(err, fault.Invalid) {
			for _, one := range group {
				retry := func() error { return r.together(ctx, host, []*wire.MachineReport{one}) }
				if err = store.Retry(ctx, retry); err != nil {
					break
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Recorder) together(ctx context.Context, host int, reports []*wire.MachineReport) error {
	var tx Txn
	changed := map[int]bool{}
	for _, report := range reports {
		id := int(report.Vm)
		if changed[id] {
			return fault.Errorf(fault.Busy, "vm %d is reported twice", id)
		}
		vm, revision, err := r.current(ctx, id, len(reports) == 1)
		if fault.Is(err, fault.NotFound) {
			r.log.Warn("host reports a machine that is not known here", "host", host, "vm", id)
			continue
		}
		if err != nil {
			return err
		}
		if vm.HostID != host {
			continue
		}
		before := vm
		saved := SavesDone(&vm, report, r.now()) // first: what else the report says may have to wait for it
		progressed := ApplyReport(&vm, report, r.now())
		if !progressed && len(saved) == 0 {
			continue
		}
		if err := r.saved(ctx, &tx, saved); err != nil {
			return err
		}
		if err := tx.VM(r.inv, &before, &vm, revision); err != nil {
			return err
		}
		changed[id] = true
		r.announce(&before, &vm)
	}
	if len(tx.Ops) == 0 {
		return nil
	}
	revision, err := r.inv.Store.Txn(ctx, tx.Conds, tx.Ops)
	if err != nil {
		return err
	}
	return r.inv.WaitFor(ctx, revision)
}

// current reads a machine from the mirror, or from the store itself when freshness matters more.
func (r *Recorder) current(ctx context.Context, id int, fresh bool) (cloud.VM, int64, error) {
	if fresh {
		return r.inv.VMs.Get(ctx, id)
	}
	return r.inv.VMRow(id)
}

func (r *Recorder) announce(before, after *cloud.VM) {
	if before.Phase() != after.Phase() {
		r.log.Info("vm "+after.Phase().String(), "vm", after.ID, "was", before.Phase().String(), "error", after.Error)
	}
}

// saved updates the images that disk-saveas made.
func (r *Recorder) saved(ctx context.Context, tx *Txn, done map[*wire.SaveResult]cloud.SaveDisk) error {
	for result, order := range done {
		image, revision, err := r.inv.Images.Get(ctx, order.ImageID)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		image.State = cloud.ImageStateReady
		image.Digest, image.ObjectSize, image.Format = result.Digest, result.Size, result.Format
		if image.Size = result.Size; image.Tree() {
			image.StoredBytes = result.Size
			image.Size = max(result.Size, order.Size) // unpacked, it is about what it was made from
		}
		if image.SavedFrom != nil {
			from := *image.SavedFrom
			from.Moved = result.Moved
			image.SavedFrom = &from
		}
		if result.Clone != "" {
			image.ClonedFrom = &cloud.ClonedFrom{ImageID: order.From, Kind: result.Clone}
		}
		if result.Error != "" {
			image.State, image.Error, image.ErrorClass = cloud.ImageStateError, result.Error, result.ErrorClass
		}
		op, err := r.inv.Images.PutOp(image.ID, image)
		if err != nil {
			return err
		}
		tx.Add(r.inv.Images.Cond(image.ID, revision), op)
	}
	return nil
}
