package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

// settle compares the record with what the driver sees, corrects the record, and says whether the domain
// has a process.
func (p *pass) settle(ctx context.Context) (lives bool, err error) {
	if p.driver == nil {
		if p.r.Domain == noDomain {
			return false, nil
		}
		return false, fault.Errorf(fault.Unsupported, "machine %d: this host has no hypervisor %q any more", p.vm(), p.r.Hypervisor)
	}
	domains, err := p.lister.fresh(ctx)
	if err != nil {
		return false, fmt.Errorf("%w: %w", errUnsure, err)
	}
	d, listed := domains[p.vm()]
	p.listed = listed
	if alive(d) {
		return p.settleLiving(ctx, d)
	}
	return false, p.settleEnded(ctx, d, listed)
}

func (p *pass) settleLiving(ctx context.Context, d hypervisor.Domain) (bool, error) {
	switch p.r.Domain {
	case running, saving:
		return true, nil
	case starting:
		if d.Status == hypervisor.Paused { // an agent died in the middle of Start: the guest has not run yet
			err := p.step(ctx, "clear half-started", func() error { return p.driver.Remove(ctx, p.id()) })
			if err != nil {
				return true, err
			}
			return false, p.note(ctx, "note half-started", func(r *reached) { r.Domain = noDomain })
		}
		return true, p.note(ctx, "note adopted", func(r *reached) {
			r.Domain, r.RunEpoch, r.Timing.BootEnd = running, r.StartEpoch, time.Now().UnixNano()
		})
	}
	p.log.Info("machine: found running", "vm", p.vm())
	return true, p.note(ctx, "note found", func(r *reached) {
		r.Domain = running
		if r.Disks == noDisks {
			r.Disks = ready
		}
	})
}

func (p *pass) settleEnded(ctx context.Context, d hypervisor.Domain, listed bool) error {
	ended := func(r *reached) {
		switch {
		case !listed:
			r.Domain, r.Reason = domainDied, "the domain is no longer there: the host was restarted or somebody removed it"
		case d.Status == hypervisor.Off:
			r.Domain, r.Reason = domainOff, d.Reason
		default:
			r.Domain, r.Reason = domainDied, d.Reason
		}
	}
	switch p.r.Domain {
	case starting:
		ran := listed && (d.Status == hypervisor.Off || p.r.Restoring)
		return p.note(ctx, "note end of start", func(r *reached) {
			if r.Domain = noDomain; ran {
				r.RunEpoch = r.StartEpoch
				ended(r)
			}
		})
	case running:
		if err := p.unplug(ctx); err != nil {
			if ctx.Err() != nil || errors.Is(err, errUnsure) {
				return err
			}
			p.log.Warn("machine: ports of an ended domain", "vm", p.vm(), "error", err) // tried again by what comes next
		}
		return p.note(ctx, "note end", ended)
	case saving:
		if _, err := os.Stat(p.memory()); err == nil {
			return p.note(ctx, "note saved", func(r *reached) { r.Domain = saved })
		}
		return p.note(ctx, "note end", ended)
	}
	return nil
}

// forgetMemory deletes saved memory that has been used or is out of date.
func (p *pass) forgetMemory(ctx context.Context) error {
	if _, err := os.Stat(p.memory()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return p.step(ctx, "forget memory", func() error { return os.Remove(p.memory()) })
}
