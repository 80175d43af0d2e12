package agent

import (
	"context"
	"fmt"
	"time"

	"hayloft/disk"
	"hayloft/internal/waiting"
)

// explained has the report say what the pass waits for, whenever there is no progress for a while, and the log when that goes
// on. The caller ends it.
func (p *pass) explained(ctx context.Context) (_ context.Context, end func()) {
	ctx, watch := waiting.New(ctx)
	log := p.pace.waitLog
	var shown string
	return ctx, watch.Every(p.pace.wait, func(what string, lapse time.Duration) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if what == "" || time.Since(p.progressed) < p.pace.wait {
			if shown != "" && p.m.report.GetProgressStep() == shown {
				p.showProgress(disk.Progress{})
			}
			log, shown = p.pace.waitLog, ""
			return
		}
		lapse = lapse.Round(time.Second)
		shown = fmt.Sprintf("has been waiting %s for %s", lapse, what)
		p.showProgress(disk.Progress{Step: shown})
		if lapse >= log {
			p.log.Warn("machine: still waiting", "vm", p.vm(), "for", what, "since", lapse)
			log = 2 * lapse
		}
	})
}

// turn is hold, explained.
func (p *pass) turn(ctx context.Context, slot chan struct{}) (giveBack func(), err error) {
	_, done := waiting.On(ctx, "its turn: the host prepares disks of %d machines at a time", cap(slot))
	defer done()
	return hold(ctx, slot)
}
