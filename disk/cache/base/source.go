package base

import (
	"context"
	"io"
	"sync"
	"time"

	"hayloft/cloud/fault"
)

// source is the image in its repository: opened when it is wanted, closed when it was not for a while, opened again
// after it could not be reached. Safe for concurrent use.
type source struct {
	ctx   context.Context // of everything that is opened
	open  func(context.Context) (io.ReaderAt, io.Closer, error)
	stall time.Duration // after which an opening or a read that does not come back is given up

	mu      sync.Mutex
	current *session
}

// session is one opening of the image.
type session struct {
	io.ReaderAt
	closer io.Closer
	cancel context.CancelFunc
	users  int
	dead   bool // to be closed by its last user
	used   time.Time
}

func (s *session) close() {
	s.cancel()
	if s.closer != nil {
		_ = s.closer.Close() // it was only read
	}
}

// acquire gives the open image; who calls it releases it. Who comes while it is being opened wants the same and waits.
func (s *source) acquire() (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		if s.open == nil {
			return nil, fault.Errorf(fault.Unavailable, "there is no repository to fetch it from")
		}
		ctx, cancel := context.WithCancel(s.ctx)
		stalled := time.AfterFunc(s.stall, cancel)
		reader, closer, err := s.open(ctx)
		if !stalled.Stop() && err == nil { // too late: what was opened ended with ctx
			err = fault.Errorf(fault.Unavailable, "opening it took more than %v", s.stall)
			if closer != nil {
				_ = closer.Close()
			}
		}
		if err != nil {
			if ctx.Err() != nil && s.ctx.Err() == nil {
				err = fault.As(fault.Unavailable, err)
			}
			cancel()
			return nil, err
		}
		s.current = &session{ReaderAt: reader, closer: closer, cancel: cancel}
	}
	s.current.users++
	return s.current, nil
}

// release ends a use. A broken session is not given to anybody again.
func (s *source) release(is *session, broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	is.users--
	is.used = time.Now()
	is.dead = is.dead || broken
	if is.dead && s.current == is {
		s.current = nil
	}
	if is.dead && is.users == 0 {
		is.close()
	}
}

// closeIdle closes the image when nobody has used it for as long as that.
func (s *source) closeIdle(idle time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is := s.current; is != nil && is.users == 0 && time.Since(is.used) >= idle {
		is.close()
		s.current = nil
	}
}

// read fills p from the image. broken says that p may still be written to. Errors: fault.Unavailable,
// fault.Corrupt when the image ends too early, and what else the repository says.
func (s *source) read(p []byte, offset int64) (n int, broken bool, err error) {
	is, err := s.acquire()
	if err != nil {
		return 0, false, err
	}
	stalled := time.AfterFunc(s.stall, is.cancel)
	n, err = is.ReadAt(p, offset)
	late := !stalled.Stop()
	if n == len(p) {
		s.release(is, late)
		return n, false, nil
	}
	if err == nil || err == io.EOF || err == io.ErrUnexpectedEOF {
		s.release(is, true)
		return n, false, fault.Errorf(fault.Corrupt, "truncated: ends at byte %d", offset+int64(n))
	}
	if late && s.ctx.Err() == nil {
		err = fault.As(fault.Unavailable, err)
	}
	s.release(is, true)
	return n, true, err
}
