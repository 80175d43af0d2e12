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
)

// reader is an image in its repository, opened for reading: again after the repository was away.
type reader struct {
	repository repository.Repository
	object     string
	size       atomic.Int64
	ctx        context.Context // of what is opened
	cancel     context.CancelFunc
	trouble    trouble

	mu     sync.Mutex
	source *openSource // nil: not open
}

// openSource is closed when it is no longer wanted and nobody is in the middle of reading it. Guarded by reader.mu.
type openSource struct {
	repository.Source
	users  int
	unused bool
}

func (o *openSource) leave() error {
	if o.unused && o.users == 0 {
		return o.Close()
	}
	return nil
}

func newReader(repo repository.Repository, object string) *reader {
	r := &reader{repository: repo, object: object}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// first opens the image and takes its size for what it is.
func (r *reader) first(ctx context.Context) error {
	defer context.AfterFunc(ctx, r.cancel)()
	src, err := r.repository.Open(r.ctx, r.object)
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.source = &openSource{Source: src}
	r.size.Store(src.Size())
	return nil
}

func (r *reader) get() (*openSource, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.source == nil {
		if r.ctx.Err() != nil {
			return nil, fs.ErrClosed
		}
		src, err := r.repository.Open(r.ctx, r.object)
		if err != nil {
			return nil, err
		}
		if src.Size() != r.size.Load() {
			err := fault.Errorf(fault.Corrupt, "object %s has %d bytes instead of %d: it is not the image that was opened", r.object, src.Size(), r.size.Load())
			return nil, errors.Join(err, src.Close())
		}
		r.source = &openSource{Source: src}
	}
	r.source.users++
	return r.source, nil
}

func (r *reader) with(f func(repository.Source) error) error {
	src, err := r.get()
	if err != nil {
		r.trouble.heard(err)
		return err
	}
	err = f(src.Source)
	r.trouble.heard(err)
	r.mu.Lock()
	src.users--
	if fault.Is(err, fault.Unavailable) && r.source == src {
		r.source, src.unused = nil, true
	}
	_ = src.leave()
	r.mu.Unlock()
	if errors.Is(err, fs.ErrClosed) {
		err = fault.As(fault.Unavailable, err)
	}
	return err
}

func (r *reader) Size() int64 { return r.size.Load() }

func (r *reader) ReadAt(p []byte, offset int64) (n int, err error) {
	var end error
	err = r.with(func(s repository.Source) error {
		n, err = s.ReadAt(p, offset)
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

// NextData implements repository.Extents; where the repository does not tell, all is data.
func (r *reader) NextData(offset int64) (start, end int64, err error) {
	var last error
	err = r.with(func(s repository.Source) error {
		x, ok := s.(repository.Extents)
		switch {
		case ok:
			start, end, err = x.NextData(offset)
		case offset >= s.Size():
			err = io.EOF
		default:
			start, end, err = offset, s.Size(), nil
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

// Close implements io.Closer.
func (r *reader) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.source == nil {
		return nil
	}
	src := r.source
	r.source, src.unused = nil, true
	return src.leave()
}
