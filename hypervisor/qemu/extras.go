package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/qmp"
)

// clockTick is the unit of CPU time in /proc, which Linux has fixed for user space (USER_HZ).
const clockTick = 100

// Usage implements hypervisor.Meter with the counters of QEMU's process.
func (d *Driver) Usage(_ context.Context, id int) (hypervisor.Usage, error) {
	dom, err := d.known(id)
	if err != nil {
		return hypervisor.Usage{}, err
	}
	p := dom.process()
	if p == nil {
		return hypervisor.Usage{}, fault.Errorf(fault.WrongState, "domain %d does not run", id)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil || p.gone() {
		return hypervisor.Usage{}, fault.Errorf(fault.WrongState, "domain %d has just ended", id)
	}
	u, err := parseStat(string(text))
	if err != nil {
		return u, fmt.Errorf("usage of domain %d: %w", id, err)
	}
	return u, nil
}

// parseStat reads a /proc/PID/stat line (proc(5)); the name in it may hold anything.
func parseStat(text string) (hypervisor.Usage, error) {
	end := strings.LastIndexByte(text, ')')
	fields := strings.Fields(text[end+1:])
	if end < 0 || len(fields) < 22 {
		return hypervisor.Usage{}, errors.New("unknown format of /proc/PID/stat")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	pages, err3 := strconv.ParseInt(fields[21], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return hypervisor.Usage{}, err
	}
	return hypervisor.Usage{CPUSeconds: float64(user+system) / clockTick, MemoryBytes: pages * int64(os.Getpagesize())}, nil
}

// Freeze implements hypervisor.Freezer: the guest stands still, and what it has written is flushed to its
// disks, while fn runs. Kill and Remove go through meanwhile.
func (d *Driver) Freeze(ctx context.Context, id int, fn func() error) error {
	if err := d.stopGuest(ctx, id); err != nil {
		return err
	}
	err := fn()
	// Also when ctx has ended, or the machine would stand still for ever.
	return errors.Join(err, d.continueGuest(context.WithoutCancel(ctx), id))
}

func (d *Driver) stopGuest(ctx context.Context, id int) error {
	ctx, dom, done, err := d.turn(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if err := d.command(ctx, dom, "stop"); err != nil {
		d.unstop(dom, err)
		return interrupted(ctx, err)
	}
	dom.mu.Lock()
	dom.freezes++
	dom.mu.Unlock()
	return nil
}

// unstop takes back a "stop" that failed with err: one that was given up may be heard all the same.
func (d *Driver) unstop(dom *domain, err error) {
	dom.mu.Lock()
	client, others := dom.monitor, dom.freezes > 0
	dom.mu.Unlock()
	if refused := (*qmp.Error)(nil); client == nil || others || errors.As(err, &refused) {
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, time.Second) // QEMU does it in the order of asking, also when it answers later
	defer cancel()
	_ = client.Execute(ctx, "cont", nil, nil)
}

func (d *Driver) continueGuest(ctx context.Context, id int) error {
	ctx, dom, done, err := d.turnAtLast(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer done()
	dom.mu.Lock()
	last := dom.freezes == 1
	dom.freezes = max(dom.freezes-1, 0)
	ending := dom.proc == nil || dom.rec.Ending.Status != ""
	dom.mu.Unlock()
	if !last || ending { // frozen by others too, or another machine by now
		return nil
	}
	if err := d.unlessEnded(ctx, dom, d.command(ctx, dom, "cont"), nil); err != nil {
		return interrupted(ctx, err)
	}
	dom.mu.Lock()
	dom.stopped = false
	dom.mu.Unlock()
	return nil
}
