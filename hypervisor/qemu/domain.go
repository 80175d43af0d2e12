package qemu

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/internal/turn"
	"hayloft/hypervisor/qemu/qmp"
)

// Files in a machine's runtime directory.
const (
	qmpSocket     = "qmp.sock"
	consoleSocket = "console.sock"
	consoleLog    = "console.log"
	qemuLog       = "qemu.log" // QEMU's stdout and stderr of its last run
)

// domain is one machine as the driver sees it. Operations take turns (Driver.turns); mu guards the fields
// against the watchers, and is held only for moments and for storing the record.
type domain struct {
	id int

	acting sync.Mutex // one at a time does what a guest's end or reset asks for, before mu

	mu        sync.Mutex
	rec       record
	proc      *process    // nil when there is none
	monitor   *qmp.Client // nil when not connected
	stopped   bool        // virtual CPUs stand still
	ioTrouble bool        // ... because the host's storage failed
	resetting bool        // between guest off and its reset, in a soft reboot
	freezes   int
	adopting  bool        // QEMU has not answered to this driver since it was adopted
	reviving  bool        // somebody waits for the turn to connect again
	migration chan string // last status of a migration
	console   *console
}

func newDomain(r record) *domain { return &domain{id: r.ID, rec: r, migration: make(chan string, 1)} }

// letGo drops what we hold of the domain without touching the machine. For the driver's end.
func (dom *domain) letGo() {
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.proc != nil {
		dom.proc.fd.Close()
	}
	if dom.monitor != nil {
		dom.monitor.Close()
	}
	if dom.console != nil {
		dom.console.close()
	}
}

func (dom *domain) record() record {
	dom.mu.Lock()
	defer dom.mu.Unlock()
	return dom.rec
}

func (dom *domain) process() *process {
	dom.mu.Lock()
	defer dom.mu.Unlock()
	return dom.proc
}

// view is what List shows.
func (dom *domain) view() hypervisor.Domain {
	dom.mu.Lock()
	defer dom.mu.Unlock()
	v := hypervisor.Domain{ID: dom.id}
	switch {
	case dom.proc == nil:
		v.Status, v.Reason = dom.rec.Outcome.Status, dom.rec.Outcome.Reason
		return v
	// QEMU's event that it has stopped may still be on its way when it has answered to a freeze.
	case (dom.stopped || dom.freezes > 0) && !dom.rec.Reboot && dom.rec.Ending.Status == "":
		v.Status = hypervisor.Paused
		if dom.ioTrouble {
			v.Reason = "waits for the host's storage"
		}
	default:
		v.Status = hypervisor.Running
	}
	v.PID, v.Started = dom.proc.pid, dom.rec.Started
	return v
}

func (d *Driver) find(id int) *domain {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.domains[id]
}

func notFound(id int) error { return fault.Errorf(fault.NotFound, "domain %d does not exist", id) }

// known returns the domain, or fault.NotFound.
func (d *Driver) known(id int) (*domain, error) {
	if dom := d.find(id); dom != nil {
		return dom, nil
	}
	return nil, notFound(id)
}

// turn waits for the domain's turn and finds it. done must be called when err is nil.
func (d *Driver) turn(ctx context.Context, id int) (context.Context, *domain, func(), error) {
	ctx, done, err := d.turns.Take(ctx, id)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("domain %d: %w", id, err)
	}
	dom, err := d.known(id)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return ctx, dom, done, nil
}

// turnAtLast is turn for what must be done in any case: a kill or a remove goes first.
func (d *Driver) turnAtLast(ctx context.Context, id int) (context.Context, *domain, func(), error) {
	for {
		if ctx, dom, done, err := d.turn(ctx, id); !errors.Is(err, turn.ErrInterrupted) {
			return ctx, dom, done, err
		}
	}
}

// List implements hypervisor.Driver. It asks no process: the watchers keep what it needs.
func (d *Driver) List(context.Context) ([]hypervisor.Domain, error) {
	d.mu.Lock()
	domains := maps.Clone(d.domains)
	d.mu.Unlock()
	out := make([]hypervisor.Domain, 0, len(domains))
	for _, id := range slices.Sorted(maps.Keys(domains)) {
		if v := domains[id].view(); v.Status != "" {
			out = append(out, v)
		}
	}
	return out, nil
}

// change stores the record as fn changes it. On error the domain keeps the old one. Caller holds dom.mu.
func (d *Driver) change(dom *domain, fn func(*record)) error {
	r := dom.rec
	fn(&r)
	if err := d.store(r); err != nil {
		return err
	}
	dom.rec = r
	return nil
}

// decide records how the domain's process is going to end, so that it is known also when we are away by
// then. The first decision stays. Caller does not hold dom.mu.
func (d *Driver) decide(dom *domain, o outcome) error {
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.proc == nil || dom.rec.Ending.Status != "" {
		return nil
	}
	return d.change(dom, func(r *record) { r.Ending, r.Reboot = o, false })
}

// client returns the QMP connection, fault.WrongState when the machine does not run. A connection that was
// lost is made again. The caller has the turn.
func (d *Driver) client(ctx context.Context, dom *domain) (*qmp.Client, error) {
	dom.mu.Lock()
	proc, client, r, lost := dom.proc, dom.monitor, dom.rec, dom.lost()
	dom.mu.Unlock()
	if proc == nil {
		return nil, fault.Errorf(fault.WrongState, "domain %d does not run", r.ID)
	}
	if !lost {
		return client, nil
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	client, err := d.connect(ctx, dom, proc, commandLimit)
	if err != nil {
		return nil, fmt.Errorf("domain %d: %w", r.ID, err)
	}
	return client, nil
}

// lost says that nobody follows what QEMU tells. Caller holds dom.mu.
func (dom *domain) lost() bool { return dom.adopting || dom.monitor == nil || dom.monitor.Err() != nil }
