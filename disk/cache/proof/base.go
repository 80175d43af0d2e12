package proof

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
	"hayloft/disk/localstore"
	"hayloft/image"
)

// baseScenario is one image's cache on a host through reads, crashes and recoveries.
type baseScenario struct {
	*runner
	disk     *faulty.Disk
	source   *faulty.Source
	image    []byte
	index    *image.Index
	donors   []cache.Donor
	capacity int64
	base     cache.Base
	readers  []*viewer
	opened   int64 // bytes that were here at Open
	synced   int64 // bytes that must be found again after a power cut
	// Why reads may fail: the repository is away or lies; the host's own disk failed.
	away, local, everLocal bool
	calm                   bool // since Open nothing failed, so that no chunk need be fetched twice
}

// viewer is one machine.
type viewer struct {
	export.Device
	mu      sync.Mutex
	touched map[int]bool
}

func (s *baseScenario) run() {
	chunk := []int{4 << 10, 4 << 10, 16 << 10, 64 << 10}[s.rng.IntN(4)]
	s.image = s.runner.image(int64(chunk*(1+s.rng.IntN(min(24, 256<<10/chunk))) + s.rng.IntN(chunk)))
	index, err := indexOf(s.image, chunk)
	if err != nil {
		s.fail("index: %v", err)
		return
	}
	s.index = index
	if s.oneIn(3) {
		s.capacity = int64(chunk * (2 + s.rng.IntN(max(1, index.Chunks()))))
	}
	s.disk = faulty.New(s.seed)
	s.source, err = faulty.NewSource(s.seed, int64(len(s.image)))
	if err == nil {
		err = s.source.Fill(s.image, 0)
	}
	if err != nil {
		s.fail("simulated repository: %v", err)
		return
	}
	if s.oneIn(3) {
		s.donate(chunk)
	}
	s.note("image of %d bytes in chunks of %d, %d of data, capacity %d, %d donors", len(s.image), chunk, index.DataBytes(), s.capacity, len(s.donors))
	defer s.shut()
	crashes := 2 + s.rng.IntN(7)
	for round := 0; round <= crashes && !s.failed(); round++ {
		if round < crashes && !s.oneIn(6) {
			n := int64(1 + s.rng.IntN(1<<(1+s.rng.IntN(6))))
			s.note("the host crashes at its change %d from now", n)
			s.disk.CrashAfter(n)
		}
		if s.open() {
			s.live()
		}
		if s.failed() {
			break
		}
		if round == crashes && !s.down() {
			s.finish()
			break
		}
		s.crash()
	}
}

func (s *baseScenario) down() bool { return s.disk.Crashed().Err() != nil }

// donate makes another image whose chunks are in part the same, on a disk that may be wrong about them.
func (s *baseScenario) donate(chunk int) {
	other := bytes.Clone(s.image)
	for range 1 + s.rng.IntN(4) {
		other[s.rng.IntN(len(other))] ^= 1
	}
	index, err := indexOf(other, chunk)
	if err != nil {
		s.fail("index of the donor: %v", err)
		return
	}
	if s.oneIn(2) { // it is not what its index says
		other[s.rng.IntN(len(other))] ^= 2
	}
	disk := faulty.New(s.seed + 1)
	f, err := disk.Create("data")
	if err == nil {
		_, err = f.WriteAt(other, 0)
	}
	if err != nil {
		s.fail("donor: %v", err)
		return
	}
	broken, few := s.oneIn(4), s.oneIn(2)
	s.donors = []cache.Donor{{
		Index: index,
		Open: func() (storage.File, error) {
			if broken {
				return nil, unix.EIO
			}
			return disk.Open("data")
		},
		Has: func(c int) bool { return !few || c%2 == 0 },
	}}
}

func (s *baseScenario) open() bool {
	if s.disk.Torn(localstore.PresentFile) {
		s.note("a sector of the map is torn") // it claims nothing, and its chunks are fetched again
		s.synced = 0
	}
	b, err := s.subject.Base(context.Background(), cache.BaseConfig{
		Name: fmt.Sprint("image ", s.seed), Dir: s.disk.Dir(), Index: s.index, Open: s.source.Opener(s.disk), Capacity: s.capacity,
		Donors: s.donors, Patience: patience, Completed: s.completed, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		if !s.down() {
			s.fail("open: %v", err)
		}
		return false
	}
	s.base, s.calm = b, !s.away
	status := b.Status()
	s.opened = status.Present
	if status.Total != s.index.DataBytes() || status.Present > status.Total || status.Complete != (status.Present == status.Total) && s.capacity == 0 && status.Complete {
		s.fail("status after opening: %+v", status)
	}
	if s.synced > status.Present && !s.everLocal {
		s.fail("%d bytes were synced, %d are here again", s.synced, status.Present)
	}
	s.readers = nil
	for range 1 + s.rng.IntN(3) {
		v := &viewer{touched: map[int]bool{}}
		v.Device = b.Reader(func(chunk int) {
			v.mu.Lock()
			defer v.mu.Unlock()
			if v.touched[chunk] {
				s.fail("chunk %d was met first twice", chunk)
			}
			v.touched[chunk] = true
		})
		s.readers = append(s.readers, v)
	}
	return !s.failed() && !s.down()
}

func (s *baseScenario) live() {
	for range 3 + s.rng.IntN(24) {
		if s.down() || s.failed() {
			return
		}
		switch s.rng.IntN(14) {
		case 0:
			s.upset()
		case 1:
			time.Sleep(time.Duration(s.rng.IntN(3000)) * time.Millisecond)
		case 2:
			s.sync()
		case 3:
			s.status()
		case 4:
			s.extents()
		case 5:
			s.reopen()
		default:
			n := 1 + s.rng.IntN(len(s.readers))
			s.result.Operations += n
			var wait sync.WaitGroup
			for _, r := range s.readers[:n] {
				wait.Go(s.operation(r))
			}
			wait.Wait()
		}
	}
}

func (s *baseScenario) operation(r *viewer) func() {
	offset, length := s.span(int64(len(s.image)), []int64{4 << 10, 32 << 10, int64(len(s.image))}[s.rng.IntN(3)])
	quick := s.oneIn(3)
	switch s.rng.IntN(8) {
	case 0:
		return func() {
			err := r.Prefetch(context.Background(), offset, length)
			s.note("prefetch %d+%d: %v", offset, length, err)
			if err != nil && !s.excused() {
				s.fail("prefetch: %v", err)
			}
		}
	case 1:
		chunks := s.rng.Perm(s.index.Chunks())
		chunks = chunks[:1+s.rng.IntN(len(chunks))]
		return func() {
			err := s.base.Preload(context.Background(), chunks, nil, nil)
			s.note("preload %d chunks: %v", len(chunks), err)
			if err != nil && !s.excused() {
				s.fail("preload: %v", err)
			}
		}
	}
	return func() { s.read(r, offset, length, quick) }
}

// excused: the repository need not be there nor tell the truth, and then reads may fail; wrong bytes are never right.
func (s *baseScenario) excused() bool { return s.down() || s.away || s.local }

func (s *baseScenario) read(r *viewer, offset, length int64, quick bool) {
	p := make([]byte, length)
	var done bool
	var err error
	if q, can := r.Device.(export.Quick); can && quick {
		done, err = q.TryReadAt(p, offset)
	}
	if !done {
		err = r.ReadAt(context.Background(), p, offset)
	}
	s.note("read %d+%d: %v", offset, length, err)
	if err != nil {
		if !s.excused() {
			s.fail("read %d+%d: %v", offset, length, err)
		}
		return
	}
	if want := s.image[offset : offset+length]; !bytes.Equal(p, want) {
		at := 0
		for p[at] == want[at] {
			at++
		}
		s.fail("read %d+%d: byte %d is %#02x, the image has %#02x", offset, length, offset+int64(at), p[at], want[at])
	}
}

func (s *baseScenario) sync() {
	before := s.base.Status().Present
	err := s.base.Sync()
	s.note("sync of %d: %v", before, err)
	if err != nil {
		if !s.down() && !s.local {
			s.fail("sync: %v", err)
		}
		return
	}
	if s.capacity == 0 && !s.down() { // who died gets no answer
		s.synced = max(s.synced, before)
	}
}

func (s *baseScenario) status() {
	status := s.base.Status()
	if status.Present > status.Total || status.Complete && status.Present != status.Total && s.capacity == 0 {
		s.fail("status %+v", status)
	}
	if s.capacity > 0 && s.capacity < status.Total && status.Present > s.capacity {
		s.fail("%d bytes are kept, the capacity is %d", status.Present, s.capacity)
	}
	if s.calm && s.capacity == 0 && !s.down() && status.Fetched > status.Total-s.opened {
		s.fail("%d bytes were fetched, %d were missing", status.Fetched, status.Total-s.opened)
	}
}

func (s *baseScenario) extents() {
	offset, length := s.span(int64(len(s.image)), int64(len(s.image)))
	at := offset
	err := s.readers[0].Extents(context.Background(), offset, length, func(e export.Extent) bool {
		if e.Offset != at || e.Length <= 0 || e.Offset+e.Length > offset+length {
			s.fail("extents of %d+%d: %d+%d after %d", offset, length, e.Offset, e.Length, at)
			return false
		}
		if e.Zero && len(bytes.TrimLeft(s.image[at:at+e.Length], "\x00")) > 0 {
			s.fail("extents tell of zeros: %d+%d", e.Offset, e.Length)
		}
		at += e.Length
		return true
	})
	if err != nil && !s.excused() || err == nil && at != offset+length && !s.failed() {
		s.fail("extents of %d+%d end at %d: %v", offset, length, at, err)
	}
}

func (s *baseScenario) reopen() {
	s.note("closed and opened again")
	if err := s.base.Close(); err != nil && !s.down() && !s.local {
		s.fail("close: %v", err)
	}
	s.base = nil
	s.disk.Heal()
	s.local = false
	if !s.down() && !s.failed() {
		s.open()
	}
}

func all(n int) []int {
	chunks := make([]int, n)
	for i := range chunks {
		chunks[i] = i
	}
	return chunks
}

func (s *baseScenario) shut() {
	if s.base == nil {
		return
	}
	if err := s.base.Close(); err != nil && !s.down() && !s.local && !errors.Is(err, fs.ErrClosed) {
		s.note("close: %v", err)
	}
	s.base = nil
}
