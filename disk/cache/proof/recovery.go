package proof

import (
	"bytes"
	"context"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
)

// crash ends the run of the host, looks at what somebody else would find in the source, and has the host come back:
// after its process was killed, or after a power cut.
func (s *volumeScenario) crash() {
	s.goDown()
	if s.oneIn(2) {
		s.killed()
	} else {
		s.cut(faulty.Chance)
	}
	s.disk.SetCapacity(0)
	if s.mode != cache.Offline || s.oneIn(2) {
		s.heal()
	}
}

func (s *volumeScenario) goDown() {
	s.disk.Crash()
	s.shut()
	s.result.Points++
	s.mu.Lock()
	s.model.crash()
	s.mu.Unlock()
	s.lookAtSource()
}

// killed: what the system had of the process is still there.
func (s *volumeScenario) killed() {
	s.note("crash %d: the process is killed", s.result.Points)
	s.disk.Kill()
	s.boundAfter = s.model.reading(s.model.tick())
}

func (s *volumeScenario) cut(choice faulty.Choice) {
	s.note("crash %d: %s", s.result.Points, s.disk.CutAs(choice))
	s.boot++
	s.pinned = false
	s.marked.Store(false)
	if s.direct() { // the source has it all
		s.boundAfter = s.model.reading(s.model.tick())
		return
	}
	s.model.cut()
	s.boundAfter = s.model.kept()
}

// lookAtSource checks what the source promises when the host is lost.
func (s *volumeScenario) lookAtSource() {
	live, durable := s.tools.buffers(s.size)
	if n := s.source.Strays(); n > 0 {
		s.fail("%d changes of an image that another owner had taken", n)
	}
	switch s.mode {
	case cache.Around, cache.Through:
		s.source.Peek(live, 0)
		s.source.PeekDurable(durable, 0)
		if err := s.model.check(live, 0, s.model.reading(s.model.tick())); err != nil {
			s.fail("the source has not what was acknowledged: %v", err)
		}
		if err := s.model.check(durable, 0, s.model.kept()); err != nil {
			s.fail("the source's disk has not what was flushed: %v", err)
		}
		return
	case cache.Back:
		s.source.Peek(live, 0)
		if err := s.model.ordered(live); err != nil {
			s.fail("host lost: %v", err)
		}
		s.source.After(faulty.Chance, s.rng.Uint64())(live, 0)
		if err := s.model.ordered(live); err != nil {
			s.fail("host lost, and the repository's power: %v", err)
		}
	}
	if !s.source.Undrained() {
		s.source.PeekDurable(durable, 0)
		if err := s.model.check(durable, 0, s.model.kept()); err != nil {
			s.fail("no mark of undrained writes, and the source has not what was durable: %v", err)
		}
	}
}

// found reads all after a recovery, checks it, and from then on expects just that.
func (s *volumeScenario) found() {
	disk, err := s.readAll()
	if err != nil {
		if !s.excused(err) {
			s.fail("read after a recovery: %v", err)
		}
		return
	}
	s.mu.Lock()
	err = s.model.check(disk, 0, s.boundAfter)
	s.model.found(disk, s.direct() && s.shaken)
	s.pinned = true
	s.mu.Unlock()
	if err != nil {
		s.fail("after the recovery: %v", err)
		return
	}
	if s.direct() && !s.shaken {
		s.compare(disk, "after the recovery")
	}
}

// compare what the machine reads with what the source has.
func (s *volumeScenario) compare(disk []byte, when string) {
	source, _ := s.tools.buffers(s.size)
	if when == "after Settle" {
		s.source.PeekDurable(source, 0)
	} else {
		s.source.Peek(source, 0)
	}
	if bytes.Equal(disk, source) {
		return
	}
	for i := range disk {
		if disk[i] != source[i] {
			s.fail("%s: byte %d (sector %d) reads %#02x, %s; the source has %#02x, %s", when, i, i/sector,
				disk[i], s.model.origin(disk[i:], int64(i)), source[i], s.model.origin(source[i:], int64(i)))
			return
		}
	}
}

func (s *volumeScenario) readAll() ([]byte, error) {
	disk := make([]byte, s.size)
	step := []int64{4 << 10, 64 << 10, s.size}[s.rng.IntN(3)]
	for at := int64(0); at < s.size; at += step {
		if err := s.volume.ReadAt(context.Background(), disk[at:min(at+step, s.size)], at); err != nil {
			return nil, err
		}
	}
	return disk, nil
}

// settle, with nothing else under way: the source then has what the machine reads, durably, and no mark.
func (s *volumeScenario) settle() error {
	s.mu.Lock()
	start := s.model.tick()
	s.mu.Unlock()
	s.marked.Store(false)
	err := s.volume.Settle(context.Background(), nil)
	s.note("settle: %v", err)
	s.mu.Lock()
	told := s.tells(err)
	s.mu.Unlock()
	if err != nil {
		if !s.away && !s.excused(err) && !told {
			s.fail("settle: %v", err)
		}
		s.mu.Lock()
		s.model.doubt()
		s.mu.Unlock()
		return err
	}
	if s.down() {
		return nil
	}
	if s.source.Undrained() {
		s.fail("settled, and the mark of undrained writes is still there")
	}
	if u := s.volume.Status().Undrained; u != 0 {
		s.fail("settled, and %d bytes are undrained", u)
	}
	s.mu.Lock()
	s.model.flushed(start)
	s.mu.Unlock()
	disk, err := s.readAll()
	if err != nil {
		if !s.excused(err) {
			s.fail("read after settle: %v", err)
		}
		return nil
	}
	s.mu.Lock()
	err = s.model.check(disk, 0, s.model.reading(s.model.tick()))
	s.mu.Unlock()
	if err != nil {
		s.fail("after Settle: %v", err)
	} else if !s.shaken || !s.direct() {
		s.compare(disk, "after Settle")
	}
	return nil
}
