package agent

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hayloft/disk"
	"hayloft/wire"
)

// show makes the machine's present state known, in the words of the record.
func (p *pass) show(phase wire.Phase) {
	report := p.r.report(p.vm(), phase)
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.m.report
	if before != nil {
		report.CpuSeconds, report.MemoryBytes = before.CpuSeconds, before.MemoryBytes
		if phase != wire.Phase_PHASE_GONE && phase != wire.Phase_PHASE_STASHED {
			report.Caches = before.Caches
		}
	}
	if phase != wire.Phase_PHASE_RUNNING {
		report.CpuSeconds, report.MemoryBytes = 0, 0
	}
	if before == nil || before.Phase != phase || before.Epoch != report.Epoch {
		details := []any{"vm", p.vm(), "phase", phaseName(phase), "epoch", report.Epoch}
		if why := report.Error + report.Reason + report.Warning; why != "" {
			details = append(details, "why", why)
		}
		p.log.Info("machine", details...)
	}
	if !proto.Equal(before, report) {
		p.m.report = report
		p.markDirty(p.vm())
	}
}

// showAgain reports a change of the record within the same phase.
func (p *pass) showAgain() {
	p.mu.Lock()
	phase := p.m.report.GetPhase()
	p.mu.Unlock()
	p.show(phase)
}

func phaseName(phase wire.Phase) string { return phase.String()[len("PHASE_"):] }

// report is what the record says, under a phase.
func (r *reached) report(vm int64, phase wire.Phase) *wire.MachineReport {
	report := &wire.MachineReport{
		Vm: vm, Epoch: r.Epoch, Phase: phase, RepositoryBytes: r.RepositoryBytes, GivenBytes: r.GivenBytes, Reboot: r.Reboot,
		Timing: &wire.Timing{Received: r.Timing.Received, PrepareStart: r.Timing.PrepareStart, PrepareEnd: r.Timing.PrepareEnd,
			BootStart: r.Timing.BootStart, BootEnd: r.Timing.BootEnd, End: r.Timing.End},
	}
	switch phase {
	case wire.Phase_PHASE_OFF:
		report.Reason, report.Warning = r.Reason, r.Warning
	case wire.Phase_PHASE_CRASHED:
		report.Reason = r.Reason
	case wire.Phase_PHASE_FAILED:
		if r.Failure != nil {
			report.FailedStep, report.Error, report.ErrorClass = r.Failure.Step, r.Failure.Error, r.Failure.Class
		}
	}
	for operation, s := range r.Saves {
		report.Saves = append(report.Saves, &wire.SaveResult{Operation: operation, Error: s.Error, ErrorClass: s.Class,
			Digest: s.Digest, Size: s.Size, Format: s.Format, Moved: s.Moved, Clone: s.Clone})
	}
	slices.SortFunc(report.Saves, func(a, b *wire.SaveResult) int { return int(a.Operation) - int(b.Operation) })
	return report
}

// remembered is what an agent that just began says of a machine before it has looked.
func (m *machine) remembered() *wire.MachineReport {
	if m.reached.Epoch == 0 {
		return nil
	}
	phase := m.reached.phase()
	if m.assignment.GetGoal() == wire.Goal_GOAL_RUNNING && m.reached.RunEpoch != m.reached.Epoch &&
		(phase == wire.Phase_PHASE_OFF || phase == wire.Phase_PHASE_CRASHED) {
		phase = wire.Phase_PHASE_PREPARING // it is off because it has not been started for this epoch yet
	}
	if phase == wire.Phase_PHASE_OFF && m.assignment.GetGoal() == wire.Goal_GOAL_OFF && m.reached.Timing.End == 0 {
		phase = wire.Phase_PHASE_STOPPING // its disks are not drained yet
	}
	return m.reached.report(m.vm, phase)
}

// phase is what the record amounts to.
func (r *reached) phase() wire.Phase {
	switch {
	case r.Failure != nil:
		return wire.Phase_PHASE_FAILED
	case r.Disks == disksGone:
		return wire.Phase_PHASE_GONE
	case r.Disks == stashed:
		return wire.Phase_PHASE_STASHED
	case r.Disks == stashing:
		return wire.Phase_PHASE_STASHING
	case r.Domain == running:
		return wire.Phase_PHASE_RUNNING
	case r.Domain == starting:
		return wire.Phase_PHASE_BOOTING
	case r.Domain == saving:
		return wire.Phase_PHASE_SAVING
	case r.Domain == saved:
		return wire.Phase_PHASE_SUSPENDED
	case r.Domain == domainOff:
		return wire.Phase_PHASE_OFF
	case r.Domain == domainDied:
		return wire.Phase_PHASE_CRASHED
	case r.Disks == ready:
		return wire.Phase_PHASE_OFF
	}
	return wire.Phase_PHASE_PREPARING
}

// progress reports how far a step on disks is, now and then.
func (p *pass) progress(done disk.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.progressed) < p.pace.progress && done.Done != done.Total {
		return
	}
	p.progressed = now
	p.showProgress(done)
}

// showProgress is progress, whenever the last was. The caller holds mu.
func (p *pass) showProgress(done disk.Progress) {
	if p.m.report == nil {
		return
	}
	report := proto.Clone(p.m.report).(*wire.MachineReport)
	report.ProgressStep, report.ProgressDone, report.ProgressTotal = done.Step, done.Done, done.Total
	report.ProgressRate = int64(done.Rate)
	p.m.report = report
	p.markDirty(p.vm())
}

// markDirty notes that there is something new to report. The caller holds mu.
func (a *Agent) markDirty(vm int64) {
	a.dirty[vm] = true
	ring(a.bell)
}

// largest is how many machines one report holds at most; gRPC takes 4 MiB a message.
const largest = 2000

// news takes what there is to report, sorted by machine.
func (a *Agent) news() []*wire.MachineReport {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.synced {
		return nil
	}
	var reports []*wire.MachineReport
	for vm := range a.dirty {
		if len(reports) == largest {
			ring(a.bell)
			break
		}
		delete(a.dirty, vm)
		if m := a.machines[vm]; m != nil && m.report != nil && !m.dropped {
			reports = append(reports, m.report)
		}
	}
	slices.SortFunc(reports, func(a, b *wire.MachineReport) int { return int(a.Vm - b.Vm) })
	return reports
}
