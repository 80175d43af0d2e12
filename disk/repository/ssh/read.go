package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/undo"
)

// source implements repository.Source. It outlives connections: the object is opened again on the next one, and
// must be the same then.
type source struct {
	repository *Repository
	ctx        context.Context // of Open: a read ends when the one who opened leaves
	name       string
	size       int64     // set by the first get
	modified   time.Time // as size

	mu     sync.Mutex
	open   *opened
	closed bool
}

// opened is an object opened on one connection.
type opened struct {
	link    *link
	release func()
	file    *sftp.File
	plain   *plainFile // nil: the bytes go the encrypted way
	info    fs.FileInfo
	users   int // under source.mu
	unused  bool
}

func (o *opened) close() error {
	defer o.release()
	select {
	case <-o.link.conn.Done():
		return nil // the other host has closed it
	default:
	}
	if o.plain != nil {
		o.plain.close()
	}
	return o.file.Close()
}

// Open implements repository.Repository.
func (r *Repository) Open(ctx context.Context, name string) (repository.Source, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	s := &source{repository: r, ctx: ctx, name: name}
	ctx, done := r.noting(ctx, "opening", name)
	defer done()
	o, err := s.get(ctx)
	if r.lostMeanwhile(ctx, o, err) {
		o, err = s.get(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.put(o)
	if r.plain {
		return &plainSource{s}, nil
	}
	return s, nil
}

// lostMeanwhile reports whether another try may do better: the connection that was there turned out to be dead.
func (r *Repository) lostMeanwhile(ctx context.Context, o *opened, err error) bool {
	return o == nil && ctx.Err() == nil && fault.Is(err, fault.Unavailable) && r.dropped()
}

// dropped reports whether a connection has been lost since this was last asked.
func (r *Repository) dropped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	any := false
	for id, l := range r.links {
		select {
		case <-l.conn.Done():
			delete(r.links, id)
			any = true
		default:
		}
	}
	return any
}

// get opens the object where it is not open.
func (s *source) get(ctx context.Context) (*opened, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fault.Errorf(fault.WrongState, "%s: object %s: source is closed", s.repository.label, s.name)
	}
	if s.open != nil {
		select {
		case <-s.open.link.conn.Done():
			s.open.unused = true
			if s.open.users == 0 {
				s.open.release()
			}
			s.open = nil
		default:
			s.open.users++
			return s.open, nil
		}
	}
	r := s.repository
	o, err := hand(ctx, r, r.limits.answer, func(l *link) (*opened, error) {
		o, err := r.openFile(ctx, l, s.name, os.O_RDONLY)
		return o, r.object(l, s.name, err)
	}, func(o *opened) { _ = o.close() })
	switch {
	case err != nil:
		return nil, err
	case s.modified.IsZero():
		s.size, s.modified = o.info.Size(), o.info.ModTime()
	case o.info.Size() != s.size || !o.info.ModTime().Equal(s.modified):
		_ = r.on(ctx, o.link, r.limits.answer, o.close)
		return nil, fault.Errorf(fault.WrongState, "%s: object %s: was changed while it was open: it had %d bytes of %s and has %d of %s", r.label, s.name,
			s.size, s.modified.UTC().Format(time.RFC3339), o.info.Size(), o.info.ModTime().UTC().Format(time.RFC3339))
	}
	o.users = 1
	s.open = o
	return o, nil
}

// openFile opens an object on a connection, and takes a share in that.
func (r *Repository) openFile(ctx context.Context, l *link, name string, flags int) (_ *opened, err error) {
	var back undo.Stack
	defer func() { err = errors.Join(err, back.Run()) }()
	if _, err := r.lstat(l, name); err != nil {
		return nil, err
	}
	o := &opened{link: l}
	if o.file, err = l.files.OpenFile(r.file(name), flags); err != nil {
		return nil, err
	}
	back.Push(func() error { o.file.Close(); return nil })
	if o.info, err = o.file.Stat(); err != nil {
		return nil, err
	}
	if m := o.info.Mode(); !m.IsRegular() {
		return nil, fault.Errorf(fault.Invalid, "is a %s, not a file", kindOf(m))
	}
	if r.plain {
		if o.plain, err = r.openPlain(ctx, l, name, flags != os.O_RDONLY); err != nil {
			return nil, err
		}
		back.Push(func() error { o.plain.close(); return nil })
	}
	if _, o.release, err = r.share(ctx, l); err != nil {
		return nil, err
	}
	back.Keep()
	return o, nil
}

// put gives back what get gave.
func (s *source) put(o *opened) {
	s.mu.Lock()
	o.users--
	last := o.unused && o.users == 0
	s.mu.Unlock()
	if last {
		_ = o.close()
	}
}

func (s *source) Size() int64 { return s.size }

func (s *source) Close() error {
	s.mu.Lock()
	s.closed = true
	o := s.open
	s.open = nil
	last := false
	if o != nil {
		o.unused = true
		last = o.users == 0
	}
	s.mu.Unlock()
	if !last {
		return nil
	}
	return s.repository.on(context.Background(), o.link, s.repository.limits.answer, o.close)
}

// with runs f on the opened object, once more on a new connection when the first is lost.
func (s *source) with(bytes int, f func(o *opened) error) error {
	for attempt := 0; ; attempt++ {
		o, err := s.get(s.ctx)
		if err != nil {
			return err
		}
		err = s.repository.on(s.ctx, o.link, s.repository.limits.forBytes(bytes), func() error {
			defer s.put(o)
			return s.repository.object(o.link, s.name, f(o))
		})
		select {
		case <-o.link.conn.Done():
			if err != nil && attempt == 0 && s.ctx.Err() == nil {
				continue
			}
		default:
		}
		return err
	}
}

func (s *source) ReadAt(p []byte, offset int64) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, s.repository.gone(s.ctx)
	}
	type got struct {
		n   int
		eof bool
	}
	answer := make(chan got, 2)
	err := s.with(len(p), func(o *opened) error {
		var g got
		var err error
		if o.plain != nil {
			g.n, g.eof, err = o.plain.readAt(p, offset, s.size)
		} else {
			g.n, g.eof, err = readAt(o.link, o.file, s.size, p, offset)
		}
		if err == nil {
			answer <- g
		}
		return err
	})
	if err != nil {
		if s.ctx.Err() != nil { // the buffer may still be written to
			err = fault.As(fault.Unavailable, err)
		}
		return 0, err
	}
	g := <-answer
	return result(g.n, g.eof, nil)
}

func result(n int, eof bool, err error) (int, error) {
	switch {
	case err != nil:
		return 0, err
	case eof:
		return n, io.EOF
	}
	return n, nil
}

// readAt reads from an object of this size, in requests that run at the same time. Not all servers give as much at once
// as they are asked for, and a lost connection may look like the end of the file.
func readAt(l *link, file *sftp.File, size int64, p []byte, offset int64) (n int, eof bool, err error) {
	if offset < 0 {
		return 0, false, fault.Errorf(fault.Invalid, "negative offset %d", offset)
	}
	if rest := max(0, size-offset); int64(len(p)) > rest {
		p, eof = p[:rest], true
	}
	for n < len(p) {
		k, err := file.ReadAt(p[n:], offset+int64(n))
		n += k
		if n == len(p) {
			break
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return n, false, err
		}
		if k > 0 {
			continue
		}
		fi, err := file.Stat()
		if err != nil {
			return n, false, err
		}
		return n, false, fault.Errorf(fault.Unavailable, "ends at %d of %d bytes", fi.Size(), size)
	}
	return n, eof, nil
}

// writeAt writes all of p, in requests that run at the same time.
func writeAt(l *link, file *sftp.File, p []byte, offset int64) error {
	if offset < 0 {
		return fault.Errorf(fault.Invalid, "negative offset %d", offset)
	}
	n, err := file.WriteAt(p, offset)
	if err == nil && n < len(p) {
		err = fmt.Errorf("%d of %d bytes were written", n, len(p))
	}
	if errors.Is(err, io.EOF) { // of the channel, not of the file
		err = sftp.ErrSSHFxConnectionLost
	}
	return err
}
