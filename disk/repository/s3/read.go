package s3

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/minio/minio-go/v7"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/attempt"
)

// source is one version of an object. Nothing is held open: connections belong to the repository.
type source struct {
	repository *Repository
	ctx        context.Context // of Open: a read ends when the one who opened leaves
	name       string
	etag       string
	size       int64
}

// Open implements repository.Repository. Reads from the source are fault.Corrupt once the object is another than it
// was now.
func (r *Repository) Open(ctx context.Context, name string) (repository.Source, error) {
	s, err := r.open(ctx, name)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (r *Repository) open(ctx context.Context, name string) (*source, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	info, err := r.look(ctx, r.key(name))
	if err == nil && (info.ETag == "" || info.Size < 0) {
		err = fault.Errorf(fault.Unsupported, "the server says no ETag or size")
	}
	if err != nil {
		return nil, r.object(name, err)
	}
	return &source{repository: r, ctx: ctx, name: name, etag: info.ETag, size: info.Size}, nil
}

func (s *source) Size() int64  { return s.size }
func (s *source) Close() error { return nil }

// ReadAt asks for what is missing of p until it is full.
func (s *source) ReadAt(p []byte, offset int64) (int, error) { return s.readAt(s.ctx, p, offset) }

func (s *source) readAt(ctx context.Context, p []byte, offset int64) (int, error) {
	switch {
	case offset < 0:
		return 0, s.repository.object(s.name, fault.Errorf(fault.Invalid, "offset %d", offset))
	case len(p) == 0:
		return 0, nil
	case offset >= s.size:
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), s.size-offset)]
	got := 0
	err := s.repository.call(ctx, s.repository.patience.Stall, func(ctx context.Context, alive func()) (int, error) {
		n, err := s.readRange(ctx, want[got:], offset+int64(got), alive)
		got += n
		return n, err
	})
	switch {
	case conditionFailed(err):
		return got, s.repository.object(s.name, fault.Errorf(fault.Corrupt, "changed while it was read: %w", err))
	case err != nil:
		return got, s.repository.object(s.name, err)
	case len(want) < len(p):
		return got, io.EOF
	}
	return got, nil
}

// readRange makes one request for p at offset, and says how much of it came.
func (s *source) readRange(ctx context.Context, p []byte, offset int64, alive func()) (int, error) {
	last := offset + int64(len(p)) - 1
	var o minio.GetObjectOptions
	if err := errors.Join(o.SetRange(offset, last), o.SetMatchETag(s.etag)); err != nil {
		return 0, fault.As(fault.Invalid, err)
	}
	body, info, header, err := s.repository.core.GetObject(ctx, s.repository.bucket, s.repository.key(s.name), o)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	alive()
	if info.ETag != s.etag {
		return 0, fault.Errorf(fault.Corrupt, "changed while it was read: its ETag was %s and is %s", s.etag, info.ETag)
	}
	if want, is := fmt.Sprintf("bytes %d-%d/%d", offset, last, s.size), header.Get("Content-Range"); is != want {
		return 0, fault.Errorf(fault.Unsupported, "the server sent Content-Range %q when asked for %q", is, want)
	}
	n, err := io.ReadFull(&living{body, alive}, p)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = &attempt.Transient{Err: io.ErrUnexpectedEOF}
	}
	return n, err
}

// living tells that bytes come, or go.
type living struct {
	io.Reader
	alive func()
}

func (l *living) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if n > 0 {
		l.alive()
	}
	return n, err
}
