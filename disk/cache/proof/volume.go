package proof

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
)

// patience of the caches under test; time is free.
const patience = 5 * time.Second

var modes = [...]cache.Mode{cache.Around, cache.Through, cache.Back, cache.Offline}

// volumeScenario is one machine's persistent image through operations, crashes and recoveries.
type volumeScenario struct {
	*runner
	disk     *faulty.Disk
	source   *faulty.Source
	model    *Model // guarded by mu of runner
	volume   cache.Volume
	mode     cache.Mode
	size     int64
	capacity int64
	boot     int
	loaded   bool // Offline: wholly here
	// boundAfter is what the next opening must find.
	boundAfter rule
	pinned     bool // it was found since the last power cut
	// Why operations may fail: the host's own disk failed in this run; the repository is away; its power went.
	local, away, shaken bool
	// owed: the repository was away since the last flush, which may have to tell of a sync that failed then.
	owed bool
	// marked: Offline has written since the last Settle, change of mode and power cut, so that it needs the repository no more.
	marked atomic.Bool
}

func (s *volumeScenario) run() {
	s.mode, s.pinned = s.subject.Mode, true
	if s.mode == "" {
		s.mode = modes[s.rng.IntN(len(modes))]
	}
	image := s.image(int64(16+s.rng.IntN(40)) * 4096)
	s.size = int64(len(image))
	if s.oneIn(3) { // the machine sees more than the image has
		s.size += 1 + s.rng.Int64N(64<<10)
	} else if s.oneIn(3) { // it need not end with a page
		image = image[:len(image)-s.rng.IntN(4096)]
		s.size = int64(len(image))
	}
	if s.mode != cache.Offline && s.oneIn(2) {
		s.capacity = int64(64<<10 + s.rng.IntN(192<<10))
	}
	s.disk = faulty.New(s.seed)
	source, err := faulty.NewSource(s.seed, int64(len(image)))
	if err == nil {
		err = source.Fill(image, 0)
	}
	if err != nil {
		s.fail("simulated repository: %v", err)
		return
	}
	s.source = source
	whole := make([]byte, s.size)
	copy(whole, image)
	s.model = newModel(whole, s.tools.same)
	s.note("%s: image of %d bytes, disk of %d, capacity %d", s.mode, len(image), s.size, s.capacity)

	defer s.shut()
	crashes := 2 + s.rng.IntN(7)
	for round := 0; round <= crashes && !s.failed(); round++ {
		if round < crashes && !s.oneIn(8) {
			s.plan()
		}
		if s.open(round > 0) {
			s.live()
		}
		if s.failed() {
			break
		}
		if round == crashes && !s.down() {
			s.finish()
			return
		}
		s.crash()
	}
}

// plan the crash, mostly soon: opening and recovery are to be hit, too.
func (s *volumeScenario) plan() {
	n := int64(1 + s.rng.IntN(1<<(1+s.rng.IntN(8))))
	s.note("the host crashes at its change %d from now", n)
	s.disk.CrashAfter(n)
}

func (s *volumeScenario) down() bool { return s.disk.Crashed().Err() != nil }

// open the volume, loaded and checked; false when the host crashed or a promise is broken.
func (s *volumeScenario) open(again bool) bool {
	if s.subject.Mode == "" && again && s.oneIn(3) {
		return s.openAs(modes[s.rng.IntN(len(modes))], again)
	}
	return s.openAs(s.mode, again)
}

// openAs: another mode rules once the volume is open in it. Until then it has what the old one promised.
func (s *volumeScenario) openAs(mode cache.Mode, again bool) bool {
	s.local = false
	if s.shaken {
		s.model.doubt()
	}
	if mode != s.mode {
		s.note("CACHE_MODE becomes %s", mode)
		s.heal()
		// Whether the change comes about or not: it may have copied back all there was, and taken the mark away.
		s.loaded = false
		s.marked.Store(false)
	}
	capacity := s.capacity
	if mode == cache.Offline {
		capacity = 0
	}
	volume, err := s.subject.Volume(context.Background(), cache.VolumeConfig{
		Name: fmt.Sprintf("machine %d disk 0", s.seed), Dir: s.disk.Dir(), Source: s.source.Open(s.disk), Size: s.size, Mode: mode,
		Capacity: capacity, Boot: fmt.Sprint("boot-", s.boot), Patience: patience, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		if s.down() {
			return false
		}
		if s.away && fault.Is(err, fault.Unavailable) && s.mode != cache.Offline {
			s.heal()
			return s.open(again)
		}
		s.fail("open: %v", err)
		return false
	}
	s.volume = volume
	if mode != s.mode {
		s.mode = mode
	}
	if volume.Size() != s.size || volume.ReadOnly() {
		s.fail("size %d, read-only %v", volume.Size(), volume.ReadOnly())
	}
	if s.mode == cache.Offline && (!s.loaded || s.oneIn(2)) || s.mode != cache.Offline && s.oneIn(4) {
		if s.mode == cache.Offline && !s.loaded {
			s.heal()
		}
		size := s.size
		if s.mode != cache.Offline {
			size = s.rng.Int64N(s.size + 1)
		}
		if err := volume.Load(context.Background(), size, nil); err != nil {
			if s.down() {
				return false
			}
			if !s.excused(err) {
				s.fail("load: %v", err)
			}
		} else if s.mode == cache.Offline {
			s.loaded = true
		}
	}
	if again && !s.failed() {
		s.found()
	}
	return !s.failed() && !s.down()
}

// excused says whether an operation may fail, for what was done to the storage.
func (s *volumeScenario) excused(err error) bool {
	switch {
	case s.down(), errors.Is(err, faulty.ErrPowerLost):
		return s.down()
	case s.local:
		return true
	case s.away && s.mode == cache.Offline && s.loaded:
		return !s.marked.Load() && fault.Is(err, fault.Unavailable) // what is written cannot be marked
	case s.away:
		return true
	case s.shaken && s.direct(): // also the length may be another
		return true
	case s.shaken:
		return fault.Is(err, fault.Unavailable)
	}
	return false
}

func (s *volumeScenario) heal() {
	s.source.Unreachable(false)
	s.source.Away(false)
	s.source.Heal()
	s.away = false
}

// upset is a failure of something other than the host.
func (s *volumeScenario) upset() {
	switch s.rng.IntN(8) {
	case 0, 1:
		if s.oneIn(2) {
			s.note("the repository is away")
			s.source.Away(true)
		} else {
			s.note("the repository does not answer")
			s.source.Unreachable(true)
		}
		s.away, s.owed = true, true
	case 2:
		s.note("the repository fails now and then")
		s.source.Inject(faulty.Fault{Err: fault.Errorf(fault.Unavailable, "injected"), OneIn: 4, Times: 1 + s.rng.IntN(8)})
		s.away, s.owed = true, true
	case 3:
		s.note("everything takes longer")
		s.source.Yield(1 + s.rng.IntN(20))
		s.disk.Yield(s.rng.IntN(5))
	case 4:
		if s.subject.Gentle {
			return
		}
		s.note("the repository loses power; %s", s.source.Cut())
		s.shaken = true
		s.mu.Lock()
		if s.direct() {
			s.model.uncertain = true
			s.model.doubt() // a handle is not told of what one before it wrote in vain
		}
		s.mu.Unlock()
	case 5:
		if s.subject.Gentle {
			return
		}
		op := []faulty.Op{faulty.Write, faulty.Sync, faulty.Read, faulty.Any}[s.rng.IntN(4)]
		s.note("the host's disk fails some %vs", op)
		s.disk.Inject(faulty.Fault{Op: op, Err: unix.EIO, Skip: s.rng.IntN(4), Times: 1 + s.rng.IntN(2)})
		s.local = true
	case 6:
		if s.subject.Gentle {
			return
		}
		s.note("the host's disk is full")
		s.disk.SetCapacity(s.disk.Used() + int64(s.rng.IntN(16<<10)))
		s.local = true
	case 7:
		if s.away {
			s.note("the repository answers")
			s.heal()
		}
	}
}

// direct modes have what was written in the source only.
func (s *volumeScenario) direct() bool { return s.mode == cache.Around || s.mode == cache.Through }

// finish settles and throws away: nothing may be missing in the source, nothing be left here.
func (s *volumeScenario) finish() {
	s.note("finish")
	s.heal()
	if s.local {
		s.shut()
		s.disk.Kill()
		s.disk.SetCapacity(0)
		if !s.open(true) {
			return
		}
	}
	if !s.direct() && s.oneIn(6) {
		s.taken()
		return
	}
	err := s.settle()
	if err != nil && (s.shaken || s.direct()) { // was told of the power cut, or of a sync that failed, now
		err = s.settle()
	}
	if err != nil {
		s.fail("the last settle: %v", err)
	}
	if s.failed() {
		return
	}
	if err := s.volume.Discard(context.Background()); err != nil {
		s.fail("discard of a settled volume: %v", err)
		return
	}
	s.shut()
	names, err := s.disk.Names()
	if err != nil || len(names) > 0 {
		s.fail("discard left %q, %v", names, err)
	}
	if n := s.source.Strays(); n > 0 {
		s.fail("%d changes of an image that another owner had taken", n)
	}
}

// taken: another owner takes the image. Once it was told, the volume must not change it any more.
func (s *volumeScenario) taken() {
	s.note("another owner takes the image")
	s.source.Take()
	for range 6 {
		offset, length := s.span(s.size, 8<<10)
		write := s.volume.WriteAt(context.Background(), make([]byte, length), offset, false)
		flush := s.volume.Flush(context.Background())
		time.Sleep(time.Second)
		s.note("write %v, flush %v", write, flush)
	}
	undrained := s.volume.Status().Undrained
	err := s.volume.Settle(context.Background(), nil)
	s.note("settle with %d undrained: %v", undrained, err)
	if undrained > 0 && err == nil {
		s.fail("settled to an image that another owner had taken")
	}
	s.shut()
	if n := s.source.Strays(); n > 0 {
		s.fail("%d changes of an image that another owner had taken", n)
	}
}

func (s *volumeScenario) shut() {
	if s.volume == nil {
		return
	}
	if err := s.volume.Close(); err != nil && !s.down() && !s.local && !s.failed() && !errors.Is(err, fs.ErrClosed) {
		s.note("close: %v", err)
	}
	s.volume = nil
}
