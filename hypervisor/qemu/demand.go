package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

// Demand implements hypervisor.Demander with the scheduler's statistics of QEMU's threads (schedstat, see
// "Scheduler Statistics" in the kernel's documentation).
func (d *Driver) Demand(_ context.Context, id int) (hypervisor.Demand, error) {
	dom, err := d.known(id)
	if err != nil {
		return hypervisor.Demand{}, err
	}
	p := dom.process()
	if p == nil {
		return hypervisor.Demand{}, fault.Errorf(fault.WrongState, "domain %d does not run", id)
	}
	demand, err := readDemand(fmt.Sprintf("/proc/%d/task", p.pid))
	if err != nil {
		return hypervisor.Demand{}, fmt.Errorf("demand of domain %d: %w", id, err)
	}
	if p.gone() {
		return hypervisor.Demand{}, fault.Errorf(fault.WrongState, "domain %d has just ended", id)
	}
	return demand, nil
}

func readDemand(tasks string) (hypervisor.Demand, error) {
	threads, err := os.ReadDir(tasks)
	if err != nil {
		return hypervisor.Demand{}, err
	}
	var ran, waited int64
	for _, thread := range threads {
		text, err := os.ReadFile(filepath.Join(tasks, thread.Name(), "schedstat"))
		if (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)) && len(threads) > 1 {
			continue // a thread that has just ended
		}
		if err != nil {
			return hypervisor.Demand{}, err
		}
		var r, w, slices int64
		if _, err := fmt.Sscan(string(text), &r, &w, &slices); err != nil {
			return hypervisor.Demand{}, fmt.Errorf("unknown format of schedstat %q: %w", text, err)
		}
		ran, waited = ran+r, waited+w
	}
	return hypervisor.Demand{Ran: float64(ran) / 1e9, Waited: float64(waited) / 1e9}, nil
}
