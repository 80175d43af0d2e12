package blockd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/waiting"
)

// object is one in a repository, opened when it is needed first, and again after the repository was away. S is how: for
// reading (reader), or for its one user (source).
type object[S repository.Source] struct {
	open   func(ctx context.Context) (S, error) // any time but the first; it looks whether it is still the same
	size   atomic.Int64
	ctx    context.Context // of what is opened
	cancel context.CancelFunc
	// opened and closed, which may be nil, are told of each handle but the first, and how its closing went when it was given
	// up.
	opened  func(S)
	closed  func(S, error)
	trouble trouble

	mu      sync.Mutex
	current *handle[S] // nil: not open
}

// handle is closed when it is no longer wanted and nobody is in the middle of using it: whoever uses a file that is
// closed meanwhile may meet another one of the same number. Guarded by object.mu.
type handle[S repository.Source] struct {
	source S
	users  int
	unused bool // not wanted any more
}

func (o *object[S]) init(open func(context.Context) (S, error)) {
	o.open = open
	o.ctx, o.cancel = context.WithCancel(context.Background())
}

// first opens the object by open and takes what it finds for what is meant.
func (o *object[S]) first(ctx context.Context, open func(context.Context) (S, error)) error {
	defer context.AfterFunc(ctx, o.cancel)()
	src, err := open(waiting.Like(o.ctx, ctx))
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.current = &handle[S]{source: src}
	o.size.Store(src.Size())
	return nil
}

func (o *object[S]) get() (*handle[S], error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current == nil {
		if o.ctx.Err() != nil {
			return nil, fs.ErrClosed
		}
		src, err := o.open(o.ctx)
		if err != nil {
			return nil, err
		}
		if o.opened != nil {
			o.opened(src)
		}
		o.current = &handle[S]{source: src}
	}
	o.current.users++
	return o.current, nil
}

// with uses the object. One that cannot be reached is opened anew the next time: its handle may be stale.
func (o *object[S]) with(f func(S) error) error {
	h, err := o.get()
	if err != nil {
		o.trouble.heard(err)
		return err
	}
	err = f(h.source)
	o.trouble.heard(err)
	o.mu.Lock()
	h.users--
	if fault.Is(err, fault.Unavailable) && o.current == h {
		o.current, h.unused = nil, true
	}
	last := h.unused && h.users == 0
	o.mu.Unlock()
	if last { // without the lock: it may hang
		closeErr := h.source.Close()
		if o.closed != nil {
			o.closed(h.source, closeErr)
		}
	}
	if errors.Is(err, fs.ErrClosed) {
		err = fault.As(fault.Unavailable, err)
	}
	return err
}

func (o *object[S]) Size() int64 { return o.size.Load() }

func (o *object[S]) ReadAt(p []byte, offset int64) (n int, err error) {
	err = o.untilEnd(func(s S) error {
		n, err = s.ReadAt(p, offset)
		return err
	})
	return n, err
}

// NextData implements repository.Extents; where the repository does not tell, all is data.
func (o *object[S]) NextData(offset int64) (start, end int64, err error) {
	err = o.untilEnd(func(s S) error {
		x, ok := repository.Source(s).(repository.Extents)
		switch {
		case ok:
			start, end, err = x.NextData(offset)
		case offset >= s.Size():
			err = io.EOF
		default:
			start, end, err = offset, s.Size(), nil
		}
		return err
	})
	return start, end, err
}

// untilEnd is with for what ends with io.EOF, which is no error of the repository's.
func (o *object[S]) untilEnd(f func(S) error) error {
	var end error
	err := o.with(func(s S) error {
		err := f(s)
		if err == io.EOF {
			end = io.EOF
			return nil
		}
		return err
	})
	if err == nil {
		err = end
	}
	return err
}

// Close implements io.Closer. Who is in the middle of using the object closes it then.
func (o *object[S]) Close() error {
	o.cancel()
	o.mu.Lock()
	h := o.current
	o.current = nil
	if h != nil {
		h.unused = true
	}
	last := h != nil && h.users == 0
	o.mu.Unlock()
	if !last {
		return nil
	}
	return h.source.Close()
}

// reader is an image in its repository, opened for reading.
type reader struct {
	object[repository.Source]
	repository repository.Repository
	name       string
}

func newReader(repo repository.Repository, name string) *reader {
	r := &reader{repository: repo, name: name}
	r.init(r.again)
	return r
}

// first opens the image and takes its size for what it is.
func (r *reader) first(ctx context.Context) error {
	return r.object.first(ctx, func(ctx context.Context) (repository.Source, error) { return r.repository.Open(ctx, r.name) })
}

func (r *reader) again(ctx context.Context) (repository.Source, error) {
	src, err := r.repository.Open(ctx, r.name)
	if err == nil && src.Size() != r.Size() {
		err = fault.Errorf(fault.Corrupt, "object %s has %d bytes instead of %d: it is not the image that was opened", r.name, src.Size(), r.Size())
		err = errors.Join(err, src.Close())
	}
	return src, err
}
