package blockd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/repository"
)

// source is a persistent image in its repository as a volume sees it: cache.Source. It is opened again as long as the
// generation is the one it was taken with. Its size is never more than keep was told: what lies beyond is taken for zeros
// after a restart.
type source struct {
	object[repository.Target]
	repository repository.Writable
	name       string
	owner      repository.Owner
	generation uint64

	keepMu sync.Mutex
	keep   func(size int64) error // see remembered; nil: nobody wants to know yet

	lossMu   sync.Mutex
	unsynced bool   // changed since the last sync that succeeded began
	boot     string // of the storage's host, "" where that is not known
	lost     error  // why what was not synced may be lost; the next sync tells
}

var _ cache.Source = (*source)(nil)

func newSource(repo repository.Writable, name string, owner repository.Owner) *source {
	s := &source{repository: repo, name: name, owner: owner}
	s.init(s.again)
	s.opened, s.closed = s.tookUp, s.gaveUp
	return s
}

// first opens the image and takes its generation and size for those that are meant.
func (s *source) first(ctx context.Context) error {
	return s.object.first(ctx, func(ctx context.Context) (repository.Target, error) {
		target, mark, err := s.repository.OpenTarget(ctx, s.name, s.owner)
		if err == nil {
			s.generation, s.boot = mark.Generation, bootOf(target)
		}
		return target, err
	})
}

func (s *source) again(ctx context.Context) (repository.Target, error) {
	target, mark, err := s.repository.OpenTarget(ctx, s.name, s.owner)
	if fault.Is(err, fault.WrongState) { // nobody's any more
		err = fault.As(fault.Busy, err)
	}
	if err != nil {
		return nil, err
	}
	if mark.Generation != s.generation {
		err := fault.Errorf(fault.Busy, "object %s: was taken again: generation %d is over, it is %d now", s.name, s.generation, mark.Generation)
		return nil, errors.Join(err, target.Close())
	}
	// A process that was killed may have made it longer and not come to remember that.
	if err := s.measure(target); err != nil {
		return nil, errors.Join(err, target.Close())
	}
	s.size.Store(target.Size()) // a loss of power may have made it shorter
	return target, nil
}

func bootOf(t repository.Target) string {
	if b, ok := t.(repository.Booted); ok {
		return b.Boot()
	}
	return ""
}

// tookUp: a host that was started anew has lost what it had not synced.
func (s *source) tookUp(t repository.Target) {
	s.lossMu.Lock()
	defer s.lossMu.Unlock()
	before := s.boot
	s.boot = bootOf(t)
	if s.unsynced && before != "" && s.boot != before {
		s.lost = fault.Errorf(fault.Unavailable, "object %s: its storage was started anew, and may have lost what was not synced", s.name)
	}
}

// gaveUp: a file that is closed with an error (close(2), of NFS) may not have all that was written to it, which a sync of the
// next one does not tell. A connection that is gone cannot tell anything.
func (s *source) gaveUp(_ repository.Target, err error) {
	s.lossMu.Lock()
	defer s.lossMu.Unlock()
	if err != nil && s.unsynced && !fault.Is(err, fault.Unavailable) && !errors.Is(err, fs.ErrClosed) {
		s.lost = fault.Errorf(fault.Unavailable, "object %s: what was not synced may be lost: %w", s.name, err)
	}
}

// change is with for what a sync makes durable.
func (s *source) change(f func(repository.Target) error) error {
	return s.with(func(t repository.Target) error {
		s.lossMu.Lock()
		s.unsynced = true
		s.lossMu.Unlock()
		return f(t)
	})
}

func (s *source) WriteAt(p []byte, offset int64) (n int, err error) {
	err = s.change(func(t repository.Target) error {
		if n, err = t.WriteAt(p, offset); err == nil && n < len(p) {
			err = io.ErrShortWrite
		}
		return errors.Join(err, s.measure(t))
	})
	return n, err
}

func (s *source) Truncate(size int64) error {
	return s.change(func(t repository.Target) error { return errors.Join(t.Truncate(size), s.measure(t)) })
}

func (s *source) Discard(offset, length int64) error {
	return s.change(func(t repository.Target) error { return t.Discard(offset, length) })
}

// Sync implements repository.Target. What may have been lost since the one before is told once, by the first that gets through.
func (s *source) Sync() error {
	return s.with(func(t repository.Target) error {
		s.lossMu.Lock()
		before := s.unsynced
		s.unsynced = false
		s.lossMu.Unlock()
		err := t.Sync()
		s.lossMu.Lock()
		defer s.lossMu.Unlock()
		if err != nil {
			s.unsynced = s.unsynced || before
			return err
		}
		lost := s.lost
		s.lost = nil
		return lost
	})
}

// measure takes the target's length for the image's when that is longer than before, once it is remembered.
func (s *source) measure(t repository.Target) error {
	if t.Size() <= s.size.Load() {
		return nil
	}
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	size := t.Size()
	if size <= s.size.Load() {
		return nil
	}
	if s.keep != nil {
		if err := s.keep(size); err != nil {
			return err
		}
	}
	s.size.Store(size)
	return nil
}

// remember has keep, unless it is nil, told from now on.
func (s *source) remember(keep func(size int64) error) {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	s.keep = keep
}

// remembered has keep remember durably how long the image is, now and whenever it was made longer, before anything is
// written there: after a restart, what lies beyond is taken for zeros.
func (s *source) remembered(keep func(size int64) error) error {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	if err := keep(s.size.Load()); err != nil {
		return err
	}
	s.keep = keep
	return nil
}

// Undrained implements cache.Source.
func (s *source) Undrained(ctx context.Context, yes bool) error {
	err := s.repository.SetUndrained(ctx, s.name, s.owner, s.generation, yes)
	s.trouble.heard(err)
	return err
}
