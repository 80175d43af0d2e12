package agent

import (
	"context"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/wire"
)

// prefetches are the images that the server wants on this host for machines to come. They are brought one at a time,
// in its order. Nothing of them is remembered: the server says all of them again in each session, and what is here
// already is done at once.
type prefetches struct {
	bell chan struct{} // rung when there may be work
	news chan struct{} // rung when there is something to report

	mu      sync.Mutex
	wanted  []*wire.Prefetch
	reports map[int64]*wire.PrefetchReport // by image, the last of those that are wanted
	dirty   map[int64]bool
	doing   *wire.Prefetch
	cancel  context.CancelFunc
}

func newPrefetches() *prefetches {
	return &prefetches{bell: make(chan struct{}, 1), news: make(chan struct{}, 1),
		reports: map[int64]*wire.PrefetchReport{}, dirty: map[int64]bool{}}
}

// want replaces all that is wanted. What is being brought and is not wanted any more stops; what has ended is reported
// again, as the server may not have heard.
func (f *prefetches) want(all []*wire.Prefetch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	serials := make(map[int64]uint64, len(all))
	for _, p := range all {
		serials[p.Image.GetId()] = p.Serial
	}
	for image, report := range f.reports {
		if serial, ok := serials[image]; ok && serial == report.Serial {
			f.dirty[image] = true
		} else {
			delete(f.reports, image)
			delete(f.dirty, image)
		}
	}
	if d := f.doing; d != nil && serials[d.Image.GetId()] != d.Serial {
		f.cancel()
	}
	f.wanted = all
	ring(f.bell)
	ring(f.news)
}

// next is the first one that has not ended.
func (f *prefetches) next(ctx context.Context) (*wire.Prefetch, context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.wanted {
		if !f.reports[p.Image.GetId()].GetEnded() {
			ctx, f.cancel = context.WithCancel(ctx)
			f.doing = p
			return p, ctx
		}
	}
	return nil, ctx
}

// tell notes a report about what is being brought, unless it is wanted no longer.
func (f *prefetches) tell(p *wire.Prefetch, r *wire.PrefetchReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	image := p.Image.GetId()
	for _, w := range f.wanted {
		if w.Image.GetId() == image && w.Serial == p.Serial {
			r.Image, r.Serial = image, p.Serial
			f.reports[image], f.dirty[image] = r, true
			ring(f.news)
		}
	}
}

func (f *prefetches) over() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancel()
	f.doing, f.cancel = nil, nil
}

func (f *prefetches) take() []*wire.PrefetchReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*wire.PrefetchReport
	for _, p := range f.wanted {
		if image := p.Image.GetId(); f.dirty[image] {
			all = append(all, f.reports[image])
		}
	}
	clear(f.dirty)
	return all
}

// prefetch brings what is wanted until ctx ends.
func (a *Agent) prefetch(ctx context.Context) {
	for ctx.Err() == nil {
		p, one := a.prefetches.next(ctx)
		if p == nil {
			select {
			case <-a.prefetches.bell:
			case <-ctx.Done():
			}
			continue
		}
		a.fetch(one, p)
		a.prefetches.over()
		ring(a.hostBell) // there may be another base
	}
}

func (a *Agent) fetch(ctx context.Context, p *wire.Prefetch) {
	var last disk.Progress
	var told time.Time
	a.prefetches.tell(p, &wire.PrefetchReport{})
	a.log.Info("image prefetch", "image", p.Image.Name, "serial", p.Serial)
	err := a.cfg.Way.Prefetch(ctx, describeImage(p.Image), p.Rate, func(done disk.Progress) {
		last = done
		if now := time.Now(); now.Sub(told) >= a.pace.progress {
			told = now
			a.prefetches.tell(p, &wire.PrefetchReport{Done: done.Done, Total: done.Total})
		}
	})
	if ctx.Err() != nil { // it is wanted no longer, or the agent ends
		return
	}
	r := &wire.PrefetchReport{Ended: true, Done: last.Done, Total: last.Total}
	if err != nil {
		r.Error, r.ErrorClass = err.Error(), fault.ClassOf(err).String()
		a.log.Warn("image not prefetched", "image", p.Image.Name, "error", err)
	} else {
		r.Done = r.Total
		a.log.Info("image prefetched", "image", p.Image.Name, "bytes", r.Total)
	}
	a.prefetches.tell(p, r)
}

// prefetchReports sends what is new of prefetches.
func (a *Agent) prefetchReports(ctx context.Context, send func(*wire.Report) error) error {
	for {
		select {
		case <-a.prefetches.news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !pause(ctx, a.pace.coalesce) {
			return context.Cause(ctx)
		}
		if reports := a.prefetches.take(); len(reports) > 0 {
			if err := send(&wire.Report{Prefetches: reports}); err != nil {
				return err
			}
		}
	}
}
