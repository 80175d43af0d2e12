package agent

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"hayloft/wire"
)

// hostState is what the host was last seen to have and to be able to do.
type hostState struct {
	mu          sync.Mutex
	hypervisors []*wire.Hypervisor
	again       time.Time // when to probe once more, as a hypervisor could not be used; zero: never
}

// probeAgain is how long a hypervisor that could not be used is believed not to be.
const probeAgain = time.Minute

// look puts the host's state together. What cannot be read is left out and logged.
func (a *Agent) look(ctx context.Context) *wire.HostState {
	state := &wire.HostState{Cpu: a.cfg.CPU, Memory: a.cfg.Memory, Hypervisors: a.probe(ctx), Storage: a.cfg.Storage}
	total, free, err := memory()
	if err != nil {
		a.log.Warn("host: memory", "error", err)
	}
	if state.Cpu == 0 {
		state.Cpu = float64(runtime.NumCPU())
	}
	if state.Memory == 0 {
		state.Memory = total
	}
	state.MemoryFree = min(free, state.Memory)
	if capacity, err := a.cfg.Way.Capacity(ctx); err != nil {
		a.complain(ctx, "host: capacity of the local store", err)
	} else {
		state.DiskTotal, state.DiskFree = capacity.Total, capacity.Free
	}
	bases, err := a.cfg.Way.Bases(ctx)
	if err != nil {
		a.complain(ctx, "host: bases", err)
	}
	for _, b := range bases {
		if b.Complete {
			state.Bases = append(state.Bases, b.Digest)
		} else {
			state.Partial = append(state.Partial, &wire.PartialBase{Digest: b.Digest, Present: b.Present, Total: b.Total})
		}
	}
	if state.Orphans, err = a.orphans(ctx); err != nil {
		a.complain(ctx, "host: orphans", err)
	}
	return state
}

func (a *Agent) complain(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		a.log.Warn(what, "error", err)
	}
}

// probe asks every hypervisor what it can do here, once when all can be used; one that cannot says why.
func (a *Agent) probe(ctx context.Context) []*wire.Hypervisor {
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	if a.host.hypervisors != nil && (a.host.again.IsZero() || time.Now().Before(a.host.again)) {
		return a.host.hypervisors
	}
	var all []*wire.Hypervisor
	var again time.Time
	for _, name := range slices.Sorted(maps.Keys(a.cfg.Hypervisors)) {
		found, err := a.cfg.Hypervisors[name].Probe(ctx)
		h := &wire.Hypervisor{Name: name, Version: found.Version, Accelerator: found.Accelerator,
			Chipsets: found.Chipsets, Notes: found.Notes, Attributes: found.Attributes}
		if err != nil {
			h.Error = err.Error()
			again = time.Now().Add(probeAgain)
		}
		all = append(all, h)
	}
	if ctx.Err() != nil {
		return all
	}
	a.host.hypervisors, a.host.again = all, again
	return all
}

// memory reads total and available memory, in bytes.
func memory() (total, available int64, err error) {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		switch {
		case err != nil:
		case fields[0] == "MemTotal:":
			total = kib << 10
		case fields[0] == "MemAvailable:":
			available = kib << 10
		}
	}
	return total, available, cmp.Or(lines.Err(), missing(total))
}

func missing(total int64) error {
	if total == 0 {
		return errors.New("/proc/meminfo does not say MemTotal")
	}
	return nil
}

// orphans lists machines that are here in some form and that no assignment names. Before the first full
// set of assignments nothing is known to be one.
func (a *Agent) orphans(ctx context.Context) ([]int64, error) {
	a.mu.Lock()
	synced := a.synced
	a.mu.Unlock()
	if !synced {
		return nil, nil
	}
	here, err := a.traces(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	for vm, m := range a.machines {
		if m.dropped {
			here[vm] = true
		}
	}
	var orphans []int64
	for vm := range here {
		if m := a.machines[vm]; m == nil || m.dropped {
			orphans = append(orphans, vm)
		}
	}
	slices.Sort(orphans)
	return orphans, err
}

// traces lists machines of which drivers, the way of disks or the network know something.
func (a *Agent) traces(ctx context.Context) (map[int64]bool, error) {
	here := make(map[int64]bool)
	var errs []error
	for name, l := range a.listers {
		domains, err := l.fresh(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		for vm := range domains {
			here[vm] = true
		}
	}
	machines, err := a.cfg.Way.Machines(ctx)
	errs = append(errs, err)
	for _, id := range machines {
		here[int64(id)] = true
	}
	ports, err := a.cfg.Network.Ports(ctx)
	errs = append(errs, err)
	for _, port := range ports {
		if vm, ok := portOwner(port); ok {
			here[vm] = true
		}
	}
	return here, errors.Join(errs...)
}

// portOwner is the machine that a port's name belongs to.
func portOwner(port string) (vm int64, ok bool) {
	rest, ok := strings.CutPrefix(port, "one-")
	number, _, dashed := strings.Cut(rest, "-")
	vm, err := strconv.ParseInt(number, 10, 64)
	return vm, ok && dashed && err == nil
}

// takeGone gives the machines whose record says that nothing of them is left. No worker begins with them until they are
// swept, whatever the server wants meanwhile.
func (a *Agent) takeGone() map[int64]*machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	gone := make(map[int64]*machine)
	for vm, m := range a.machines {
		if m.finished && m.reached.Disks == disksGone {
			m.working, gone[vm] = true, m
		}
	}
	return gone
}

// sweep removes, once when the agent begins, traces of the machines that are gone: a crash of the host may have
// brought them back. Then their workers begin. It also gives up networks nobody uses.
func (a *Agent) sweep(ctx context.Context, gone map[int64]*machine) {
	a.sweepTraces(ctx, gone)
	for _, m := range gone {
		a.own(func() { a.work(m) })
	}
	a.releaseUnused(ctx)
}

func (a *Agent) sweepTraces(ctx context.Context, gone map[int64]*machine) {
	if len(gone) == 0 {
		return
	}
	ports, err := a.cfg.Network.Ports(ctx)
	if err != nil {
		a.complain(ctx, "network: ports", err)
	}
	for _, port := range ports {
		if vm, ok := portOwner(port); ok && gone[vm] != nil {
			if err := a.cfg.Network.Unplug(ctx, port); err != nil {
				a.complain(ctx, "network: port of a machine that is gone", err)
			}
		}
	}
	machines, err := a.cfg.Way.Machines(ctx)
	if err != nil {
		a.complain(ctx, "disks: machines", err)
	}
	for _, id := range machines {
		if gone[int64(id)] != nil {
			if err := a.cfg.Way.Remove(ctx, id, a.cfg.machineDir(int64(id))); err != nil {
				a.complain(ctx, "disks: of a machine that is gone", err)
			}
		}
	}
}

// hostReports sends the host's state at once, when it changes, and now and then. It looks apart from the
// work on disks and domains.
func (a *Agent) hostReports(ctx context.Context, send func(*wire.Report) error) error {
	tick := time.NewTicker(a.pace.host)
	defer tick.Stop()
	var last *wire.HostState
	for due := true; ; {
		state := a.look(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if due || !proto.Equal(last, state) {
			if err := send(&wire.Report{Host: state}); err != nil {
				return err
			}
			last = state
			if err := a.hear(); err != nil {
				return err
			}
		}
		due = false
		select {
		case <-tick.C:
			due = true
		case <-a.hostBell:
			if !pause(ctx, a.pace.hostPause) {
				return context.Cause(ctx)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// pause waits; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
