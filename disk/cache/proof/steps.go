package proof

import (
	"context"
	"slices"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

// live is one run of the machine: operations by one to three clients until the host crashes or enough is done.
func (s *volumeScenario) live() {
	clients := 1 + s.rng.IntN(3)
	for range 4 + s.rng.IntN(24) {
		if s.down() || s.failed() {
			return
		}
		switch s.rng.IntN(24) {
		case 0:
			s.settle()
		case 1:
			s.upset()
		case 2:
			time.Sleep(time.Duration(s.rng.IntN(4000)) * time.Millisecond)
		case 3:
			s.extents()
		case 4:
			s.discardTooEarly()
		case 5:
			s.reopen()
		default:
			s.together(1 + s.rng.IntN(clients))
		}
	}
}

// together has several clients do one operation each at the same time.
func (s *volumeScenario) together(n int) {
	operations := make([]func(), n)
	for i := range operations {
		operations[i] = s.operation()
	}
	s.result.Operations += n
	if n == 1 {
		operations[0]()
		return
	}
	var wait sync.WaitGroup
	for _, do := range operations {
		wait.Go(do)
	}
	wait.Wait()
}

// operation is decided here and done when called.
func (s *volumeScenario) operation() func() {
	offset, length := s.span(s.size, []int64{600, 8 << 10, 40 << 10}[s.rng.IntN(3)])
	fua, quick := s.oneIn(6), s.oneIn(3)
	switch s.rng.IntN(12) {
	case 0, 1, 2:
		return func() { s.read(offset, length, quick) }
	case 3, 4, 5, 6, 7:
		return func() { s.write(offset, length, fua, quick && !fua) }
	case 8:
		z := export.ZeroFlags{Trim: s.oneIn(2), NoHole: s.oneIn(4), Fast: s.oneIn(4), FUA: fua}
		return func() { s.zero(offset, length, z) }
	case 9:
		return func() {
			if err := s.volume.Prefetch(context.Background(), offset, length); err != nil && !s.excused(err) && !fault.Is(err, fault.OutOfSpace) {
				s.fail("prefetch: %v", err)
			}
		}
	default:
		return s.flush
	}
}

func (s *volumeScenario) read(offset, length int64, quick bool) {
	s.mu.Lock()
	start := s.model.tick()
	s.mu.Unlock()
	p := make([]byte, length)
	var done bool
	var err error
	if q, can := s.volume.(export.Quick); can && quick {
		done, err = q.TryReadAt(p, offset)
	}
	if !done {
		err = s.volume.ReadAt(context.Background(), p, offset)
	}
	s.note("read %d+%d: %v", offset, length, err)
	if err != nil {
		if !s.excused(err) {
			s.fail("read %d+%d: %v", offset, length, err)
		}
		return
	}
	s.mu.Lock()
	err = s.model.check(p, offset, s.model.reading(start))
	s.mu.Unlock()
	if err != nil {
		s.fail("%v", err)
	}
}

func (s *volumeScenario) write(offset, length int64, fua, quick bool) {
	s.mu.Lock()
	c := s.model.begin(&change{offset: offset, length: length})
	s.mu.Unlock()
	p := make([]byte, length)
	c.fill(s.tools.same, p, offset)
	var done bool
	var err error
	if q, can := s.volume.(export.Quick); can && quick {
		done, err = q.TryWriteAt(p, offset)
	}
	if !done {
		err = s.volume.WriteAt(context.Background(), p, offset, fua)
	}
	clear(p) // it is the caller's again
	s.answered(c, fua, err)
}

func (s *volumeScenario) zero(offset, length int64, z export.ZeroFlags) {
	s.mu.Lock()
	c := s.model.begin(&change{offset: offset, length: length, zero: true})
	s.mu.Unlock()
	err := s.volume.Zero(context.Background(), offset, length, z)
	if z.Fast && fault.Is(err, fault.Unsupported) {
		s.note("zero %d+%d would not be fast", offset, length)
		s.mu.Lock()
		s.model.end(c, false, false)
		s.mu.Unlock()
		return
	}
	s.answered(c, z.FUA, err)
}

func (s *volumeScenario) answered(c *change, fua bool, err error) {
	s.mu.Lock()
	s.model.end(c, err == nil, fua)
	if err != nil && fua && !s.direct() { // a flush of the source tells of what another sync lost
		s.model.doubt()
	}
	if err == nil {
		s.marked.Store(true)
	}
	text := c.String()
	s.mu.Unlock()
	s.note("%s fua %v: %v", text, fua, err)
	if err != nil && !s.excused(err) {
		s.fail("%s: %v", text, err)
	}
	if err == nil && fua {
		s.promised()
	}
}

func (s *volumeScenario) flush() {
	s.mu.Lock()
	start := s.model.tick()
	s.mu.Unlock()
	err := s.volume.Flush(context.Background())
	s.mu.Lock()
	if err == nil {
		s.model.flushed(start)
	} else {
		s.model.doubt()
	}
	now, told := s.model.clock, s.tells(err)
	s.mu.Unlock()
	s.note("flush %d to %d: %v", start, now, err)
	if err != nil && !s.excused(err) && !told {
		s.fail("flush: %v", err)
	}
	if err == nil {
		s.promised()
	}
}

// tells reports whether a flush fails because a sync did before it, which it tells once; that it told is forgotten by a host that crashes then, or whose
// disk fails. The caller holds mu.
func (s *volumeScenario) tells(err error) bool {
	told := s.owed && s.direct() && fault.Is(err, fault.Unavailable)
	s.owed = s.owed && (err != nil || s.away || s.local)
	return told
}

// promised looks whether the source tells of writes that are durable here and not there.
func (s *volumeScenario) promised() {
	if s.direct() {
		return
	}
	s.mu.Lock()
	now := s.model.clock
	s.mu.Unlock()
	if s.source.Undrained() {
		return
	}
	durable := make([]byte, s.size)
	s.source.PeekDurable(durable, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.model.kept()
	covers := before.covers
	before.covers = func(c *change) bool { return c.durable <= now && covers(c) }
	if err := s.model.check(durable, 0, before); err != nil && s.what == "" {
		s.what = "acknowledged as durable without a mark in the source: " + err.Error()
	}
}

// extents must tell the truth about zeros and leave no gaps.
func (s *volumeScenario) extents() {
	offset, length := s.span(s.size, s.size)
	at := offset
	var list []export.Extent
	err := s.volume.Extents(context.Background(), offset, length, func(e export.Extent) bool {
		if e.Offset != at || e.Length <= 0 {
			s.fail("extents of %d+%d: %d+%d after %d", offset, length, e.Offset, e.Length, at)
			return false
		}
		at += e.Length
		list = append(list, e)
		return true
	})
	if s.failed() {
		return
	}
	if err != nil {
		if !s.excused(err) {
			s.fail("extents: %v", err)
		}
		return
	}
	if at != offset+length {
		s.fail("extents of %d+%d end at %d", offset, length, at)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range slices.DeleteFunc(list, func(e export.Extent) bool { return !e.Zero }) {
		if err := s.model.check(make([]byte, e.Length), e.Offset, s.model.reading(s.model.clock)); err != nil && s.what == "" {
			s.what = "extents tell of zeros: " + err.Error()
		}
	}
}

// discardTooEarly must be refused while the source has not everything.
func (s *volumeScenario) discardTooEarly() {
	if s.direct() || s.away || s.local || s.volume.Status().Undrained == 0 {
		return
	}
	s.source.Unreachable(true)
	s.away = true
	err := s.volume.Discard(context.Background())
	s.note("discard too early: %v", err)
	if err != nil {
		if !fault.Is(err, fault.WrongState) && !s.excused(err) {
			s.fail("discard with undrained writes: %v", err)
		}
		s.heal()
		return
	}
	s.heal()
	// Draining may have ended just before.
	durable := make([]byte, s.size)
	s.source.PeekDurable(durable, 0)
	s.mu.Lock()
	err = s.model.check(durable, 0, s.model.reading(s.model.tick()))
	s.mu.Unlock()
	if err != nil {
		s.fail("discarded with undrained writes: %v", err)
		return
	}
	s.loaded = false
	s.reopen()
}

// reopen closes in order and opens again.
func (s *volumeScenario) reopen() {
	if err := s.volume.Close(); err != nil && !s.excused(err) {
		s.fail("close: %v", err)
		return
	}
	s.note("closed and opened again")
	s.volume = nil
	if s.down() || s.failed() {
		return
	}
	s.disk.Heal()
	s.disk.SetCapacity(0)
	s.mu.Lock()
	s.boundAfter = s.model.reading(s.model.tick())
	s.mu.Unlock()
	if !s.open(true) && !s.failed() {
		s.note("crashed while opening")
	}
}
