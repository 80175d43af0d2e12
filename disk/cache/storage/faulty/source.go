package faulty

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/repository"
)

const imageFile = "image"

// Source is a persistent image in its repository: a disk of its own, which loses power on its own, the link to
// it, and the mark beside it. Open gives what a cache is opened with. Safe for concurrent use.
type Source struct {
	server, link *Disk

	mu          sync.Mutex
	generation  uint64
	undrained   bool
	unreachable bool
	away        bool
	cuts        uint64
	strays      int
	lie         Lie
	told        uint64
	stale       io.ReaderAt
}

// NewSource makes an image of size bytes, all zeros, durable.
func NewSource(seed uint64, size int64) (*Source, error) {
	s := &Source{server: New(mix(seed) + 1), link: New(mix(seed) + 2), generation: 1}
	f, err := s.server.Create(imageFile)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	return s, s.server.Sync()
}

// Fill changes the image durably, behind everybody's back: what it holds to begin with.
func (s *Source) Fill(p []byte, offset int64) error {
	f, err := s.server.Open(imageFile)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(p, offset); err != nil {
		return err
	}
	return f.Sync()
}

// Peek reads the image as it is now, without faults and lies; beyond its end zeros.
func (s *Source) Peek(p []byte, offset int64) {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.server.live[imageFile].read(p, offset)
}

// PeekDurable reads what a power cut of the repository leaves for sure.
func (s *Source) PeekDurable(p []byte, offset int64) {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.server.live[imageFile].readDurable(p, offset)
}

// After reads what a power cut of the repository now may leave; nothing changes. Different salts, different outcomes.
func (s *Source) After(c Choice, salt uint64) func(p []byte, offset int64) {
	left := s.server.Fork(c, salt).live[imageFile]
	return left.read
}

// Undrained is the mark.
func (s *Source) Undrained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.undrained
}

// Take gives the image to another owner: from now on handles that are open get fault.Busy from Undrained.
func (s *Source) Take() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
}

// Strays is how many changes came from owners after Undrained told them that they are none any more.
func (s *Source) Strays() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.strays
}

// Unreachable makes all fail with fault.Unavailable, or no longer. A write that fails may be done all the same.
func (s *Source) Unreachable(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreachable = yes
}

// Away makes all fail with fault.Unavailable, or no longer. Nothing of what fails is done.
func (s *Source) Away(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = yes
}

// Inject, Heal, Stall, Slow and Yield are those of Disk, for the way to the image: what waits there ends with the host.
func (s *Source) Inject(f Fault)                 { s.link.Inject(f) }
func (s *Source) Heal()                          { s.link.Heal() }
func (s *Source) Stall(op Op) *Stall             { return s.link.Stall(op, "") }
func (s *Source) Yield(times int)                { s.link.Yield(times) }
func (s *Source) Slow(op Op, wait time.Duration) { s.link.Slow(op, wait) }

func (s *Source) file() (storage.File, error) { return s.server.Open(imageFile) }

// Cut is a power cut of the repository alone. Handles go on; one that had written what was not synced is told
// by its next Sync, once: fault.Unavailable, as a network file system does.
func (s *Source) Cut() string { return s.CutAs(Chance) }

// CutAs chooses what is left.
func (s *Source) CutAs(c Choice) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cuts++
	return s.server.CutAs(c)
}

// Open is the image opened by a host, in the present run of it: the handle dies with the run, and what it changes is
// counted as a crash point of the host.
func (s *Source) Open(host *Disk) cache.Source {
	host.mu.Lock()
	r := host.run
	host.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return &handle{source: s, host: host, run: r, generation: s.generation, cuts: s.cuts}
}

type handle struct {
	source     *Source
	host       *Disk
	run        *run
	generation uint64
	// guarded by source.mu
	busy     bool   // was told
	cuts     uint64 // of the repository, when all that this handle wrote was durable
	unsynced bool
}

// begin waits on the link, and decides what becomes of an operation. part is how much of it is done.
func (h *handle) begin(op Op, offset int64) (f storage.File, part float64, err error) {
	s := h.source
	s.link.mu.Lock()
	s.link.hold(h.run.ctx, op, imageFile)
	s.link.sequence++
	err = s.link.fault(op, imageFile)
	part = s.link.part(op, imageFile, offset+int64(s.link.sequence))
	s.link.mu.Unlock()

	v := h.host.begin(h.run, op, "", offset)
	h.host.mu.Unlock()
	if v.err == ErrPowerLost {
		err, part = v.err, v.part
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.away {
		part = 0
	}
	if err == nil && (s.unreachable || s.away) {
		err = fault.Errorf(fault.Unavailable, "image: the repository does not answer")
	}
	if err == nil {
		part = 1
	}
	if (op == Write || op == Truncate || op == Punch) && part > 0 {
		h.unsynced = true
		if h.busy {
			s.strays++
		}
	}
	f, openErr := s.file()
	if openErr != nil {
		return nil, 0, openErr
	}
	return f, part, err
}

func (h *handle) Size() int64 {
	f, err := h.source.file()
	if err != nil {
		return 0
	}
	size, err := f.Size()
	if err != nil {
		return 0
	}
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	return h.source.lie.size(size)
}

func (h *handle) ReadAt(p []byte, offset int64) (int, error) {
	f, part, err := h.begin(Read, offset)
	if f == nil {
		return 0, err
	}
	if err != nil {
		n, _ := f.ReadAt(p[:int(float64(len(p))*part)], offset)
		return min(n, max(0, len(p)-1)), err
	}
	n, err := f.ReadAt(p, offset)
	return h.source.lied(p, n, offset, remote(err))
}

func (h *handle) WriteAt(p []byte, offset int64) (int, error) {
	f, part, err := h.begin(Write, offset)
	if f == nil {
		return 0, err
	}
	n, writeErr := f.WriteAt(p[:int(float64(len(p))*part)], offset)
	if err == nil {
		err = remote(writeErr)
	}
	return n, err
}

func (h *handle) Truncate(size int64) error {
	f, part, err := h.begin(Truncate, size)
	if f == nil {
		return err
	}
	if now, sizeErr := f.Size(); sizeErr != nil {
		return sizeErr
	} else if size < now {
		return fault.Errorf(fault.Invalid, "image: %d bytes cannot become %d", now, size)
	}
	if part > 0.5 {
		if truncateErr := f.Truncate(size); err == nil {
			err = remote(truncateErr)
		}
	}
	return err
}

func (h *handle) Discard(offset, length int64) error {
	f, part, err := h.begin(Punch, offset)
	if f == nil {
		return err
	}
	if punchErr := f.Punch(offset, int64(float64(length)*part)); err == nil {
		err = remote(punchErr)
	}
	return err
}

func (h *handle) Sync() error {
	f, part, err := h.begin(Sync, 0)
	if err != nil && (f == nil || part < 1) {
		if fault.Is(err, fault.Unavailable) {
			err = &repository.NotBegun{Err: err}
		}
		return err
	}
	s := h.source
	s.mu.Lock()
	lost := h.unsynced && h.cuts != s.cuts
	h.unsynced, h.cuts = false, s.cuts
	s.mu.Unlock()
	if syncErr := f.Sync(); err == nil {
		err = remote(syncErr)
	}
	if lost && err == nil {
		err = fault.Errorf(fault.Unavailable, "image: the repository lost power, and with it writes that were not synced")
	}
	return err
}

func (h *handle) Undrained(ctx context.Context, yes bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, part, err := h.begin(Rename, 0)
	if f == nil {
		return err
	}
	s := h.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && h.generation != s.generation {
		h.busy = true
		return fault.Errorf(fault.Busy, "image: taken by another owner: generation %d, this is %d", s.generation, h.generation)
	}
	if part > 0.5 && h.generation == s.generation {
		s.undrained = yes
	}
	return err
}

// remote is how an error of the repository's own disk looks from here.
func remote(err error) error {
	if errors.Is(err, ErrPowerLost) {
		return fault.Errorf(fault.Unavailable, "image: the repository lost power")
	}
	return err
}

func (h *handle) Close() error { return nil }

// Opener is what a base is opened with: cache.BaseConfig.Open.
func (s *Source) Opener(host *Disk) func(context.Context) (io.ReaderAt, io.Closer, error) {
	return func(ctx context.Context) (io.ReaderAt, io.Closer, error) {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		h := s.Open(host).(*handle)
		if f, _, err := h.begin(Open, 0); err != nil || f == nil {
			return nil, nil, fmt.Errorf("open image: %w", err)
		}
		return h, h, nil
	}
}
