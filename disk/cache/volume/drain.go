package volume

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
)

const (
	epochAge  = 2 * time.Second // after which an epoch is closed that no flush closes
	drainRun  = 64 << 10        // bytes written to the source at once
	scanBytes = 256 << 10       // read from the log at once
)

// run drains epochs, oldest first, until the volume is closed or the source is somebody else's.
func (l *backlog) run() {
	defer close(l.done)
	for {
		e := l.oldest()
		if e == nil {
			return
		}
		for pause := firstPause; ; pause = min(2*pause, lastPause) {
			err := l.drain(e)
			if l.life.Err() != nil {
				return
			}
			l.note(err)
			if err == nil {
				break
			}
			if fault.Is(err, fault.Busy) || fault.Is(err, fault.Corrupt) || !l.rest(pause) {
				return
			}
		}
	}
}

// rest waits before the next try, unless somebody asks for it; false when the log is closed.
func (l *backlog) rest(pause time.Duration) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.nudge:
	case <-l.life.Done():
		return false
	}
	return true
}

// note remembers why draining does not go on. Nothing goes on when the image is another's, or the log is not what was
// written to it.
func (l *backlog) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil && l.trouble != nil:
		l.v.log.Info("volume drains again", "volume", l.v.name)
	case err != nil && l.trouble == nil:
		l.v.log.Warn("volume does not drain", "volume", l.v.name, "error", err)
	}
	l.trouble = err
	if fault.Is(err, fault.Busy) || fault.Is(err, fault.Corrupt) {
		l.fenced = err
	}
	l.broadcast()
}

// oldest waits for a closed epoch. One that is open for long, has become large or is waited for is closed. nil when
// the log is closed.
func (l *backlog) oldest() *epoch {
	for {
		l.mu.Lock()
		e := l.epochs[0]
		var age <-chan time.Time
		if !e.closed && !e.empty() {
			old := time.Since(e.born)
			if l.urgent > 0 || l.degraded || l.sick != nil || int64(e.end-e.start) > l.ring/4 || old >= epochAge {
				l.closeEpoch()
			} else {
				age = time.After(epochAge - old)
			}
		}
		closed := e.closed
		l.mu.Unlock()
		if l.life.Err() != nil {
			return nil
		}
		if closed {
			return e
		}
		select {
		case <-l.kick:
		case <-age:
		case <-l.life.Done():
		}
	}
}

// drain brings an epoch to the source. Whatever goes wrong on the way, all of it is done again: the source may have
// lost what it had not synced. Once the source has synced it, the tail moves on durably, and only then is the
// next epoch's turn: a log that is replayed from its tail never takes the source back by more than this epoch.
func (l *backlog) drain(e *epoch) error {
	l.mu.Lock()
	synced := l.durable >= e.end || l.sick != nil
	l.mu.Unlock()
	if !synced {
		_ = l.sync() // its error makes the log sick; the epoch is drained all the same while it can be read
	}
	if err := l.verify(e); err != nil {
		return err
	}
	if err := l.v.durably(l.life, l.v.syncSource, func() error { return l.writeEpoch(e) }); err != nil {
		return err
	}
	return l.advance(e)
}

// verify reads the epoch's records as recovery would: what rotted must not get to the source.
func (l *backlog) verify(e *epoch) error {
	l.mu.Lock()
	start, end := e.start, e.end
	l.mu.Unlock()
	s := l.scanner(start)
	for s.pos < end {
		r, ok, err := s.record()
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		if !ok || r.epoch != e.number {
			return fault.Errorf(fault.Corrupt, "log: epoch %d is damaged at position %d", e.number, s.pos)
		}
		s.pos += uint64(r.size())
	}
	return nil
}

// writeEpoch writes the newest content of each range, many ranges at a time: inside an epoch there is no order.
func (l *backlog) writeEpoch(e *epoch) error {
	g, ctx := errgroup.WithContext(l.life)
	g.SetLimit(writesToSource)
	for at := int64(0); ctx.Err() == nil; {
		run := l.nextRun(e, at)
		if len(run) == 0 {
			break
		}
		at = run[len(run)-1].end
		g.Go(func() error { return l.writeRun(ctx, run) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.life.Err()
}

// nextRun is the next spans of the epoch that can be written at once.
func (l *backlog) nextRun(e *epoch, at int64) []span {
	var run []span
	for {
		s, ok := e.spans.next(at)
		if !ok {
			return run
		}
		if s = s.from(at); len(run) > 0 && (s.start != at || s.zero() || at-run[0].start >= drainRun) {
			return run
		}
		if s.zero() {
			return append(run, s)
		}
		run = append(run, s)
		if limit := run[0].start + drainRun; s.end > limit {
			run[len(run)-1].end = limit
			return run
		}
		at = s.end
	}
}

func (l *backlog) writeRun(ctx context.Context, run []span) error {
	c := change{offset: run[0].start, length: run[len(run)-1].end - run[0].start}
	if run[0].zero() {
		c.noHole = run[0].pos&noHoleSpan != 0
		return l.v.applyOnce(ctx, c, true)
	}
	buffer := l.v.buffer(int(c.length))
	c.p = *buffer
	for _, s := range run {
		part := c.p[s.start-c.offset : s.end-c.offset]
		if n, err := l.file.ReadAt(part, l.at(s.pos)); n < len(part) {
			return fmt.Errorf("log: %w", err)
		}
	}
	err := l.v.applyOnce(ctx, c, true)
	if err == nil { // after an error the source may still read it
		l.v.buffers.Put(buffer)
	}
	return err
}

// advance moves the tail behind an epoch that the source has.
func (l *backlog) advance(e *epoch) error {
	l.mu.Lock()
	end, sequence, durable := e.end, e.endSequence, l.durable
	l.mu.Unlock()
	if err := l.writeHeader(end, sequence, e.number+1, max(durable, end)); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.fallSick(err)
		return err
	}
	l.indexMu.Lock()
	for at := int64(0); ; {
		s, ok := e.spans.next(at)
		if !ok {
			break
		}
		l.index.remove(s.start, s.end, end)
		at = s.end
	}
	l.indexMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epochs = l.epochs[1:]
	l.tail, l.tailNumber = end, sequence
	l.durable = max(l.durable, end)
	l.tailNow.Store(end)
	if used := int64(l.head - l.tail); l.degraded && used < l.ring/4 {
		l.degraded = false
		l.v.log.Info("volume acknowledges from its log again", "volume", l.v.name)
	}
	l.broadcast()
	return nil
}
