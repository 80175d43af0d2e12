package volume

import (
	"context"
	"fmt"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
)

func (l *backlog) tryWrite(p []byte, offset int64) bool {
	if int64(len(p)) > l.maxPayload {
		return false
	}
	r := record{kind: writeRecord, offset: offset, length: int64(len(p)), payloadCRC: crcOf(p)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.marked || l.degraded || l.fenced != nil || l.sick != nil || l.life.Err() != nil || !l.fits(r.size()) {
		return false
	}
	return l.append(r, p) == nil
}

// change puts c into the log, a record at a time.
func (l *backlog) change(ctx context.Context, c change, fua bool) error {
	if c.p == nil {
		kind := zeroRecord
		if c.noHole {
			kind = zeroNoHoleRecord
		}
		if err := l.record(ctx, record{kind: kind, offset: c.offset, length: c.length}, c); err != nil {
			return err
		}
	}
	for p, at := c.p, c.offset; len(p) > 0; {
		n := min(int64(len(p)), l.maxPayload)
		r := record{kind: writeRecord, offset: at, length: n, payloadCRC: crcOf(p[:n])}
		if err := l.record(ctx, r, writeOf(p[:n], at)); err != nil {
			return err
		}
		p, at = p[n:], at+n
	}
	if fua {
		return l.flush(ctx)
	}
	return nil
}

// record appends one record, or, when the log cannot be written, brings the change to the source behind all that
// is in it. A volume that is degraded acknowledges when the source has it, as long as the source answers.
func (l *backlog) record(ctx context.Context, r record, c change) error {
	w := waiting{l: l}
	defer w.end()
	for {
		l.mu.Lock()
		switch {
		case l.fenced != nil:
			defer l.mu.Unlock()
			return l.fenced
		case l.sick != nil:
			l.mu.Unlock()
			if done, err := l.past(ctx, r, c); done || err != nil {
				return err
			}
			continue
		case !l.marked:
			l.mu.Unlock()
			if err := l.mark(ctx); err != nil {
				return err
			}
			continue
		case !l.fits(r.size()):
			if err := w.unlockAndWait(ctx); err != nil {
				return err
			}
			continue
		}
		degraded := l.degraded
		if err := l.append(r, c.p); err != nil {
			l.fallSick(err)
			l.mu.Unlock()
			continue
		}
		end := l.head
		for degraded && l.tail < end && l.trouble == nil && l.sick == nil {
			if err := w.unlockAndWait(ctx); err != nil {
				return err
			}
			l.mu.Lock()
		}
		l.mu.Unlock()
		return nil
	}
}

// past waits until the log is empty. If it still does not take the record then, the source does. With done false
// somebody else found the log well again.
func (l *backlog) past(ctx context.Context, r record, c change) (done bool, err error) {
	if err := l.direct.take(ctx); err != nil {
		return false, err
	}
	defer l.direct.give()
	if err := l.drained(ctx, nil); err != nil {
		return false, err
	}
	if err := l.mark(ctx); err != nil {
		return false, err
	}
	l.mu.Lock()
	if l.sick == nil {
		l.mu.Unlock()
		return false, nil
	}
	if l.append(r, c.p) == nil {
		l.sick = nil
		l.v.log.Info("volume uses its log again", "volume", l.v.name)
		l.mu.Unlock()
		return true, nil
	}
	l.mu.Unlock()
	return true, l.v.apart(ctx, c, func(ctx context.Context, c change) error {
		return l.v.durably(ctx, l.v.patientSync, func() error { return l.v.apply(ctx, c, true) })
	})
}

// waiting is one who waits for the log to change: while the source takes something, and for the volume's patience
// after.
type waiting struct {
	l        *backlog
	deadline time.Time // zero until it waits
	tail     uint64    // then; when it moves, the source is at work
}

// unlockAndWait gives up l.mu. The open epoch is drained too while somebody waits.
func (w *waiting) unlockAndWait(ctx context.Context) error {
	l := w.l
	if w.deadline.IsZero() {
		l.urgent++
	}
	if w.deadline.IsZero() || l.tail != w.tail {
		w.deadline, w.tail = time.Now().Add(l.v.patience), l.tail
	}
	changed, trouble, fenced := l.next(), l.trouble, l.fenced
	l.mu.Unlock()
	l.wake()
	if fenced != nil {
		return fenced
	}
	t := time.NewTimer(time.Until(w.deadline))
	defer t.Stop()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return fault.As(fault.Unavailable, ctx.Err())
	case <-l.life.Done():
		return l.v.closed()
	case <-t.C:
		if trouble != nil {
			return trouble
		}
		return fault.Errorf(fault.Unavailable, "the source does not keep up with the log")
	}
}

func (w *waiting) end() {
	if !w.deadline.IsZero() {
		w.l.mu.Lock()
		w.l.urgent--
		w.l.mu.Unlock()
	}
}

// drained waits until the source has all that is in the log now.
func (l *backlog) drained(ctx context.Context, report func(done, total int64)) error {
	w := waiting{l: l}
	defer w.end()
	select {
	case l.nudge <- struct{}{}:
	default:
	}
	l.mu.Lock()
	start, target := l.tail, l.head
	for l.tail < target {
		if err := w.unlockAndWait(ctx); err != nil {
			return err
		}
		l.mu.Lock()
		if tail := l.tail; report != nil {
			l.mu.Unlock()
			report(int64(min(tail, target)-start), int64(target-start))
			l.mu.Lock()
		}
	}
	l.mu.Unlock()
	return nil
}

// flush: what the log cannot keep is brought to the source.
func (l *backlog) flush(ctx context.Context) error {
	l.mu.Lock()
	l.closeEpoch()
	l.mu.Unlock()
	l.wake()
	if l.sync() == nil {
		return nil
	}
	if err := l.drained(ctx, nil); err != nil {
		return err
	}
	return l.syncPast(ctx)
}

// syncPast syncs what was written past the log and failed, if there is any: what was read of it is to stay.
func (l *backlog) syncPast(ctx context.Context) error {
	if !l.v.present.held() {
		return nil
	}
	return l.v.apart(ctx, change{}, func(ctx context.Context, _ change) error {
		return l.v.patient(ctx, func() error { return l.v.syncSource(ctx) })
	})
}

// mark has the source say that it lacks writes, before the first is acknowledged.
func (l *backlog) mark(ctx context.Context) error {
	if err := l.marking.take(ctx); err != nil {
		return err
	}
	defer l.marking.give()
	l.mu.Lock()
	marked := l.marked
	l.mu.Unlock()
	if marked {
		return nil
	}
	err := l.v.patient(ctx, func() error { return l.v.remote.Undrained(ctx, true) })
	if err != nil {
		l.fence(err)
		return fmt.Errorf("mark: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marked = true
	return nil
}

func (l *backlog) fence(err error) {
	if !fault.Is(err, fault.Busy) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fenced = err
	l.broadcast()
}

func (l *backlog) settle(ctx context.Context, report func(done, total int64)) error {
	if err := l.drained(ctx, report); err != nil {
		return err
	}
	if err := l.syncPast(ctx); err != nil {
		return err
	}
	if err := l.marking.take(ctx); err != nil {
		return err
	}
	defer l.marking.give()
	l.mu.Lock()
	if l.fenced != nil || l.head != l.tail {
		defer l.mu.Unlock()
		return l.fenced
	}
	l.marked = false // from now on a write waits for us and sets it again
	l.mu.Unlock()
	err := l.v.patient(ctx, func() error { return l.v.remote.Undrained(ctx, false) })
	if err != nil {
		l.fence(err)
		return fmt.Errorf("mark: %w", err)
	}
	return nil
}

// segment is the first part of [at, end) that is of one kind: in the log, or not.
func (l *backlog) segment(at, end int64) (s span, inLog bool) {
	l.indexMu.RLock()
	defer l.indexMu.RUnlock()
	s, ok := l.index.next(at)
	if !ok || s.start >= end {
		return span{start: at, end: end}, false
	}
	if s.start > at {
		return span{start: at, end: s.start}, false
	}
	s = s.from(at)
	s.end = min(s.end, end)
	return s, true
}

// readLog reads a span. With done false it is in the source by now, and its place in the log may be another's.
func (l *backlog) readLog(p []byte, s span) (done bool, err error) {
	if s.zero() {
		clear(p)
		return true, nil
	}
	n, err := l.file.ReadAt(p, l.at(s.pos))
	if l.tailNow.Load() > s.pos {
		return false, nil
	}
	if n < len(p) {
		return false, fmt.Errorf("log: %w", err)
	}
	return true, nil
}

func (l *backlog) tryRead(p []byte, offset int64) bool {
	for at, end := offset, offset+int64(len(p)); at < end; {
		s, inLog := l.segment(at, end)
		part := p[at-offset : s.end-offset]
		var done bool
		if inLog {
			done, _ = l.readLog(part, s)
		} else {
			done, _ = l.v.cached(part, at)
		}
		if !done {
			return false
		}
		at = s.end
	}
	return true
}

func (l *backlog) read(ctx context.Context, p []byte, offset int64) error {
	for at, end := offset, offset+int64(len(p)); at < end; {
		s, inLog := l.segment(at, end)
		part := p[at-offset : s.end-offset]
		if inLog {
			done, err := l.readLog(part, s)
			if err != nil {
				return err
			}
			if !done {
				continue
			}
		} else if err := l.v.readThrough(ctx, part, at); err != nil {
			return err
		}
		at = s.end
	}
	return nil
}

func (l *backlog) dirtyIn(offset, length int64) bool {
	s, inLog := l.segment(offset, offset+length)
	return inLog || s.end < offset+length
}

func (l *backlog) extents(ctx context.Context, start, end int64, add func(start, end int64, hole bool) bool) error {
	for start < end {
		s, inLog := l.segment(start, end)
		goOn := true
		if inLog {
			goOn = add(s.start, s.end, s.zero())
		} else {
			err := l.v.sourceExtents(ctx, start, s.end, func(a, b int64, hole bool) bool {
				goOn = add(a, b, hole)
				return goOn
			})
			if err != nil {
				return err
			}
		}
		if !goOn {
			return nil
		}
		start = s.end
	}
	return nil
}

func (l *backlog) status(s *cache.VolumeStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.LogSize = l.ring
	s.Undrained = int64(l.head - l.tail)
	s.Degraded = l.degraded || l.sick != nil
	s.Epoch, s.Drained = l.open().number, l.epochs[0].number
	if l.trouble != nil {
		s.Error = l.trouble.Error()
	}
	if l.fenced != nil {
		s.Error = l.fenced.Error()
	}
}

// shut ends the drain and makes the log durable as it is.
func (l *backlog) shut() error {
	l.stop()
	if l.started {
		<-l.done
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sick != nil {
		if l.head > l.tail {
			return l.sick
		}
		return nil
	}
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("log: sync: %w", err)
	}
	return l.writeHeader(l.tail, l.tailNumber, l.epochs[0].number, l.head)
}
