package proof

import (
	"bytes"
	"context"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/localstore"
)

// completed is called when the mark is durable: everything must be, whatever a power cut takes.
func (s *baseScenario) completed() {
	s.note("completed")
	s.checkComplete(s.disk.Fork(faulty.Nothing, 0), "completed")
}

// checkComplete: when there is a mark of completeness, machines open the file itself, and nobody verifies any more.
func (s *baseScenario) checkComplete(d *faulty.Disk, when string) {
	if _, err := d.Open(localstore.CompleteFile); err != nil {
		if when == "completed" {
			s.fail("completed without a mark that is durable: %v", err)
		}
		return
	}
	f, err := d.Open(localstore.DataFile)
	if err != nil {
		s.fail("%s: marked as complete without data: %v", when, err)
		return
	}
	got := make([]byte, len(s.image))
	size, _ := f.Size()
	if _, err := f.ReadAt(got, 0); err != nil || size != int64(len(s.image)) || !bytes.Equal(got, s.image) {
		s.fail("%s: marked as complete with wrong data: size %d, %v", when, size, err)
	}
}

func (s *baseScenario) upset() {
	s.calm = false
	switch s.rng.IntN(7) {
	case 0:
		s.note("the repository does not answer")
		s.source.Unreachable(true)
		s.away = true
	case 1:
		s.note("the repository fails now and then")
		s.source.Inject(faulty.Fault{Err: fault.Errorf(fault.Unavailable, "injected"), OneIn: 3, Times: 1 + s.rng.IntN(8)})
		s.away = true
	case 2, 3:
		lie := faulty.Lie{}
		switch s.rng.IntN(4) {
		case 0:
			lie.WrongByte = 1 + s.rng.IntN(3)
		case 1:
			lie.Short = 1 + s.rng.IntN(3)
		case 2:
			lie.Stale = 1 + s.rng.IntN(3)
		case 3:
			lie.Less = s.rng.Int64N(int64(len(s.image)))
		}
		s.note("the repository lies: %+v", lie)
		old := bytes.Clone(s.image)
		for i := range old {
			old[i] ^= byte(i >> 9)
		}
		s.source.Lie(lie, bytes.NewReader(old))
		s.away = true
	case 4:
		s.note("everything takes longer")
		s.source.Yield(1 + s.rng.IntN(20))
		s.disk.Yield(s.rng.IntN(5))
	case 5:
		if s.subject.Gentle {
			return
		}
		op := []faulty.Op{faulty.Write, faulty.Sync, faulty.Read, faulty.Any}[s.rng.IntN(4)]
		s.note("the host's disk fails some %vs", op)
		s.disk.Inject(faulty.Fault{Op: op, Err: unix.EIO, Skip: s.rng.IntN(4), Times: 1 + s.rng.IntN(3)})
		s.local, s.everLocal = true, true
	case 6:
		s.note("the repository is well")
		s.heal()
	}
}

func (s *baseScenario) heal() {
	s.source.Unreachable(false)
	s.source.Heal()
	s.source.Lie(faulty.Lie{}, nil)
	s.away = false
}

// crash, and look at what is left: without the repository whatever is here must be right.
func (s *baseScenario) crash() {
	s.disk.Crash()
	s.shut()
	s.result.Points++
	if s.oneIn(2) {
		s.note("crash %d: the process is killed", s.result.Points)
		s.disk.Kill()
	} else {
		s.note("crash %d: %s", s.result.Points, s.disk.CutAs(faulty.Chance))
		s.checkComplete(s.disk, "after the power cut")
	}
	s.local = false
	if s.failed() {
		return
	}
	s.heal()
	if s.oneIn(2) {
		return
	}
	s.source.Unreachable(true)
	s.away = true
	if s.open() {
		base, here := s.base, s.base.Status()
		got := int64(0)
		for c := range s.index.Chunks() {
			offset, length := s.index.Range(c)
			p := make([]byte, length)
			err := s.readers[0].ReadAt(context.Background(), p, offset)
			switch {
			case err == nil && !bytes.Equal(p, s.image[offset:offset+int64(length)]):
				s.fail("after the crash: chunk %d is here and wrong", c)
			case err == nil && !s.index.IsZero(c):
				got += int64(length)
			case err != nil && s.index.IsZero(c):
				s.fail("after the crash: chunk %d is of zeros and cannot be read: %v", c, err)
			}
		}
		s.shut()
		// Chunks that donors have, or that repeat others, come without the repository and drive others out.
		if out := base.Status().Evicted - here.Evicted; got+out < here.Present && !s.everLocal {
			s.fail("after the crash: %d bytes are said to be here, %d can be read, %d had to go", here.Present, got, out)
		}
	}
	s.shut()
	s.heal()
}

// finish reads all: it must be right, and then, without a bound, complete.
func (s *baseScenario) finish() {
	s.note("finish")
	s.heal()
	if s.local {
		s.reopen()
		if s.failed() {
			return
		}
	}
	for _, r := range s.readers {
		s.read(r, 0, int64(len(s.image)), false)
	}
	if s.failed() || s.capacity > 0 {
		return
	}
	if err := s.base.Preload(context.Background(), all(s.index.Chunks()), nil, nil); err != nil {
		s.fail("the last preload: %v", err)
		return
	}
	s.sync()
	if status := s.base.Status(); !status.Complete && !s.everLocal {
		s.fail("all was read and synced, and it is not complete: %+v", status)
	}
	s.shut()
	s.disk.Crash()
	s.disk.CutAs(faulty.Nothing)
	s.source.Unreachable(true)
	s.away = true
	if !s.open() {
		return
	}
	s.away = s.everLocal
	s.read(s.readers[0], 0, int64(len(s.image)), false)
}
