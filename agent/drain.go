package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/wire"
)

// drain brings what the machine wrote to persistent images, and is only here, to their repositories. It may be called
// again and again. A repository that cannot be reached is tried for pace.drainTry, and one that says nothing is waited
// for as long as limit.
func (p *pass) drain(ctx context.Context, leaves bool, limit time.Duration) error {
	switch p.r.Disks {
	case noDisks, stashed, stashing, disksGone: // stashing: it was drained before that began
		return nil
	}
	if err := p.busy(ctx, drainingDisks); err != nil {
		return err
	}
	err := p.step(ctx, "drain", func() error { return p.settleDisks(ctx, leaves, limit) })
	if err == nil || ctx.Err() != nil {
		p.sampleCaches(ctx)
		return err
	}
	what := p.undrained(ctx, err)
	if what == "" {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (p *pass) settleDisks(ctx context.Context, leaves bool, limit time.Duration) error {
	watch := newStall(ctx, limit)
	defer watch.end()
	var before error // what the last attempt but one said
	for {
		err := p.cfg.Way.Settle(watch.ctx, p.id(), leaves, func(done disk.Progress) {
			watch.moved(done)
			if !strings.HasPrefix(done.Step, "drain ") {
				done.Step = strings.TrimSpace("drain " + done.Step)
			}
			p.progress(done)
		})
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case watch.ctx.Err() != nil && before != nil:
			return before
		case watch.ctx.Err() != nil && !fault.Is(err, fault.Unavailable): // it was interrupted
			return context.Cause(watch.ctx)
		case watch.ctx.Err() != nil || !fault.Is(err, fault.Unavailable) || watch.still() > p.pace.drainTry:
			return err
		}
		before = err
		pause(watch.ctx, p.pace.drainWait)
	}
}

// stall ends its context when no progress was made for some time.
type stall struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	limit  time.Duration
	timer  *time.Timer

	mu    sync.Mutex
	done  map[string]int64
	since time.Time
}

func newStall(ctx context.Context, limit time.Duration) *stall {
	s := &stall{limit: limit, done: map[string]int64{}, since: time.Now()}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.timer = time.AfterFunc(limit, func() { s.cancel(fault.Errorf(fault.Unavailable, "nothing was drained for %s", limit)) })
	return s
}

func (s *stall) end() {
	s.timer.Stop()
	s.cancel(nil)
}

// moved gives more time when a step has got further than ever.
func (s *stall) moved(p disk.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Done > s.done[p.Step] {
		s.done[p.Step], s.since = p.Done, time.Now()
		s.timer.Reset(s.limit)
	}
}

// still is for how long there has been no progress.
func (s *stall) still() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.since)
}

// undrained names the disks with writes that are only here, and those whose repository cannot be reached, with why when err does
// not say that; "" when none is known.
func (p *pass) undrained(ctx context.Context, err error) string {
	p.sampleCaches(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	var disks []string
	for _, c := range p.m.report.GetCaches() {
		said := ""
		if c.Undrained > 0 {
			said = fmt.Sprintf("disk %d has %s that its image%s has not", c.Disk, mebibytes(c.Undrained), p.imageName(c.Disk))
		}
		if c.Error != "" && !strings.Contains(err.Error(), c.Error) {
			if said == "" {
				said = fmt.Sprintf("disk %d", c.Disk)
			}
			said += " (" + c.Error + ")"
		}
		if said != "" {
			disks = append(disks, said)
		}
	}
	return strings.Join(disks, ", ")
}

func (p *pass) imageName(disk int32) string {
	for _, d := range p.want.GetMachine().GetDisks() {
		if d.Id == disk && d.Image != nil {
			return " " + d.Image.Name
		}
	}
	return ""
}

func mebibytes(bytes int64) string { return fmt.Sprintf("%.1f MB", float64(bytes)/(1<<20)) }

// drainOff drains a machine that is off and stays here. When that does not work, nothing is lost: the writes stay in
// the cache, which goes on draining; the machine is off, with a warning that goes when they are drained.
func (p *pass) drainOff(ctx context.Context) error {
	err := p.drain(ctx, false, p.pace.drainTry)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	warning := ""
	if err != nil {
		warning = fmt.Sprintf("not drained: %v", err)
	}
	if warning == p.r.Warning {
		return nil
	}
	return p.note(ctx, "note drained", func(r *reached) { r.Warning = warning })
}

// drainGone drains a machine that goes. An image that somebody has taken from it meanwhile (image release) can never
// get its writes: they go with it.
func (p *pass) drainGone(ctx context.Context) error {
	err := p.drain(ctx, true, p.pace.drain)
	if err != nil && ctx.Err() == nil && fault.Is(err, fault.Busy) {
		p.log.Warn("machine: an image was taken from it, and its writes are given up", "vm", p.vm(), "error", err)
		return nil
	}
	return err
}

// cachesPatience bounds one look at the caches of a machine.
const cachesPatience = 5 * time.Second

// caches asks what the caches of a machine's disks are doing.
func (a *Agent) caches(ctx context.Context, vm int64) ([]*wire.DiskCache, error) {
	ctx, cancel := context.WithTimeout(ctx, cachesPatience)
	defer cancel()
	found, err := a.cfg.Way.Caches(ctx, int(vm))
	if err != nil {
		return nil, err
	}
	var all []*wire.DiskCache
	for _, c := range found {
		all = append(all, &wire.DiskCache{Disk: int32(c.Disk), Mode: c.Mode, Cached: c.Cached, Total: c.Total, Undrained: c.Undrained,
			Degraded: c.Degraded, Error: c.Error})
	}
	return all, nil
}

// sampleCaches looks at the caches of this machine and reports what is new.
func (p *pass) sampleCaches(ctx context.Context) {
	if !cached(p.want.GetMachine()) {
		return
	}
	all, err := p.caches(ctx, p.vm())
	if err != nil {
		p.complain(ctx, "machine: caches", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m.cachesAre(all) {
		p.markDirty(p.vm())
	}
}

// cached says whether a machine has disks that can have a cache.
func cached(m *wire.Machine) bool {
	for _, d := range m.GetDisks() {
		if d.Image != nil {
			return true
		}
	}
	return false
}
