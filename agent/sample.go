package agent

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hayloft/hypervisor"
	"hayloft/wire"
)

// sample reads now and then what running machines used, and audits: a machine whose report does not fit
// what its driver sees, or whose last pass was not certain, is looked at again.
func (a *Agent) sample(ctx context.Context) {
	tick := time.NewTicker(a.pace.usage)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for name, l := range a.listers {
			domains, err := l.fresh(ctx)
			if err != nil {
				a.complain(ctx, name+": domains", err)
				continue
			}
			a.audit(name, domains)
			if meter, ok := l.driver.(hypervisor.Meter); ok {
				a.measure(ctx, meter, domains)
			}
		}
		a.sampleAll(ctx)
	}
}

func (a *Agent) audit(name string, domains map[int64]hypervisor.Domain) {
	var doubtful []int64
	a.mu.Lock()
	for vm, m := range a.machines {
		if m.working || m.dropped || m.assignment.GetMachine().GetHypervisor() != name {
			continue
		}
		if lives := alive(domains[vm]); m.unsure || lives != (m.report.GetPhase() == wire.Phase_PHASE_RUNNING) {
			m.unsure = false
			doubtful = append(doubtful, vm)
		}
	}
	a.mu.Unlock()
	for _, vm := range doubtful {
		a.kick(vm)
	}
}

// measure samples every running domain and reports all in one go.
func (a *Agent) measure(ctx context.Context, meter hypervisor.Meter, domains map[int64]hypervisor.Domain) {
	used := make(map[int64]hypervisor.Usage)
	for vm, d := range domains {
		if d.Status != hypervisor.Running || ctx.Err() != nil {
			continue
		}
		if usage, err := meter.Usage(ctx, int(vm)); err == nil { // one that ended meanwhile has none
			used[vm] = usage
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for vm, usage := range used {
		m := a.machines[vm]
		if m == nil || m.report.GetPhase() != wire.Phase_PHASE_RUNNING ||
			m.report.CpuSeconds == usage.CPUSeconds && m.report.MemoryBytes == usage.MemoryBytes {
			continue
		}
		report := proto.Clone(m.report).(*wire.MachineReport)
		report.CpuSeconds, report.MemoryBytes = usage.CPUSeconds, usage.MemoryBytes
		m.report = report
		a.markDirty(vm)
	}
}

// cachesAre puts a sample into the machine's report. The caller holds mu and marks the machine dirty.
func (m *machine) cachesAre(all []*wire.DiskCache) (changed bool) {
	if m.report == nil || slices.EqualFunc(m.report.Caches, all, func(a, b *wire.DiskCache) bool { return proto.Equal(a, b) }) {
		return false
	}
	report := proto.Clone(m.report).(*wire.MachineReport)
	report.Caches = all
	m.report = report
	return true
}

// sampleAll looks at the caches of machines that run, and of those that are off and not drained: when their caches
// have drained by themselves meanwhile, their workers look again.
func (a *Agent) sampleAll(ctx context.Context) {
	wanted := map[int64]*wire.MachineReport{}
	a.mu.Lock()
	for vm, m := range a.machines {
		phase := m.report.GetPhase()
		if !m.dropped && !m.working && cached(m.assignment.GetMachine()) &&
			(phase == wire.Phase_PHASE_RUNNING || phase == wire.Phase_PHASE_SUSPENDED || m.report.GetWarning() != "") {
			wanted[vm] = m.report
		}
	}
	a.mu.Unlock()
	for vm, before := range wanted {
		all, err := a.caches(ctx, vm)
		if err != nil {
			a.complain(ctx, "machines: caches", err)
			return // of all of them, most likely
		}
		a.mu.Lock()
		m := a.machines[vm]
		if m == nil || m.report != before { // its worker reported meanwhile, and may have looked later than we did
			a.mu.Unlock()
			continue
		}
		if m.cachesAre(all) {
			a.markDirty(vm)
		}
		drained := m.report.GetWarning() != "" && !slices.ContainsFunc(all, func(c *wire.DiskCache) bool { return c.Undrained > 0 })
		a.mu.Unlock()
		if drained {
			a.kick(vm)
		}
	}
}
