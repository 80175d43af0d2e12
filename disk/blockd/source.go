package blockd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/repository"
)

// source is a persistent image in its repository as a volume sees it: cache.Source. It opens the image when it is
// needed first, and again after the repository was away, as long as the generation is the one it was taken with.
type source struct {
	repository repository.Writable
	object     string
	owner      repository.Owner
	generation uint64
	size       atomic.Int64    // never more than keep was told: what lies beyond is taken for zeros after a restart
	ctx        context.Context // of what is opened
	cancel     context.CancelFunc
	trouble    trouble

	mu     sync.Mutex
	target *opened // nil: not open

	keepMu sync.Mutex
	keep   func(size int64) error // see remembered; nil: nobody wants to know yet
}

// opened is closed when it is no longer wanted and nobody is in the middle of using it: whoever uses a file that is
// closed meanwhile may meet another one of the same number. Guarded by source.mu.
type opened struct {
	repository.Target
	users  int
	unused bool // not wanted any more
}

func (o *opened) leave() error {
	if o.unused && o.users == 0 {
		return o.Close()
	}
	return nil
}

var _ cache.Source = (*source)(nil)

func newSource(repo repository.Writable, object string, owner repository.Owner) *source {
	s := &source{repository: repo, object: object, owner: owner}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// first opens the image and takes its generation and size for those that are meant.
func (s *source) first(ctx context.Context) error {
	defer context.AfterFunc(ctx, s.cancel)()
	target, mark, err := s.repository.OpenTarget(s.ctx, s.object, s.owner)
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	s.target, s.generation = &opened{Target: target}, mark.Generation
	s.size.Store(target.Size())
	return nil
}

func (s *source) get() (*opened, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.target != nil {
		s.target.users++
		return s.target, nil
	}
	if s.ctx.Err() != nil {
		return nil, fs.ErrClosed
	}
	target, mark, err := s.repository.OpenTarget(s.ctx, s.object, s.owner)
	if fault.Is(err, fault.WrongState) { // nobody's any more
		err = fault.As(fault.Busy, err)
	}
	if err != nil {
		return nil, err
	}
	if mark.Generation != s.generation {
		err := fault.Errorf(fault.Busy, "object %s: was taken again: generation %d is over, it is %d now", s.object, s.generation, mark.Generation)
		return nil, errors.Join(err, target.Close())
	}
	// A process that was killed may have made it longer and not come to remember that.
	if err := s.measure(target); err != nil {
		return nil, errors.Join(err, target.Close())
	}
	s.size.Store(target.Size()) // a loss of power may have made it shorter
	s.target = &opened{Target: target, users: 1}
	return s.target, nil
}

// with uses the image. One that cannot be reached is opened anew the next time: its file handle may be stale.
func (s *source) with(f func(repository.Target) error) error {
	target, err := s.get()
	if err != nil {
		s.trouble.heard(err)
		return err
	}
	err = f(target.Target)
	s.trouble.heard(err)
	s.mu.Lock()
	target.users--
	if fault.Is(err, fault.Unavailable) && s.target == target {
		s.target, target.unused = nil, true
	}
	_ = target.leave()
	s.mu.Unlock()
	if errors.Is(err, fs.ErrClosed) {
		err = fault.As(fault.Unavailable, err)
	}
	return err
}

func (s *source) Size() int64 { return s.size.Load() }

func (s *source) ReadAt(p []byte, offset int64) (n int, err error) {
	var end error
	err = s.with(func(t repository.Target) error {
		n, err = t.ReadAt(p, offset)
		if err == io.EOF {
			end = io.EOF
			return nil
		}
		return err
	})
	if err == nil {
		err = end
	}
	return n, err
}

func (s *source) WriteAt(p []byte, offset int64) (n int, err error) {
	err = s.with(func(t repository.Target) error {
		n, err = t.WriteAt(p, offset)
		return errors.Join(err, s.measure(t))
	})
	return n, err
}

func (s *source) Truncate(size int64) error {
	return s.with(func(t repository.Target) error { return errors.Join(t.Truncate(size), s.measure(t)) })
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

func (s *source) Discard(offset, length int64) error {
	return s.with(func(t repository.Target) error { return t.Discard(offset, length) })
}

func (s *source) Sync() error { return s.with(func(t repository.Target) error { return t.Sync() }) }

// NextData implements repository.Extents; where the repository does not tell, all is data.
func (s *source) NextData(offset int64) (start, end int64, err error) {
	var last error
	err = s.with(func(t repository.Target) error {
		x, ok := t.(repository.Extents)
		switch {
		case ok:
			start, end, err = x.NextData(offset)
		case offset >= t.Size():
			err = io.EOF
		default:
			start, end, err = offset, t.Size(), nil
		}
		if err == io.EOF {
			last = io.EOF
			return nil
		}
		return err
	})
	if err == nil {
		err = last
	}
	return start, end, err
}

// Undrained implements cache.Source.
func (s *source) Undrained(ctx context.Context, yes bool) error {
	return s.repository.SetUndrained(ctx, s.object, s.owner, s.generation, yes)
}

func (s *source) Close() error {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.target == nil {
		return nil
	}
	target := s.target
	s.target, target.unused = nil, true
	return target.leave()
}
