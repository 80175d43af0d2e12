package http

import (
	"context"
	"io"
	nethttp "net/http"
	"net/url"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/attempt"
)

// source is one version of an object. Nothing is held open: connections belong to the repository.
type source struct {
	repository *Repository
	ctx        context.Context // of Open: a read ends when the one who opened leaves
	name       string
	address    *url.URL
	version    version
}

// Open implements repository.Repository. Reads from the source are fault.Corrupt once the object is another than it
// was now.
func (r *Repository) Open(ctx context.Context, name string) (repository.Source, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	v, err := r.look(ctx, name)
	if err != nil {
		return nil, r.object(name, err)
	}
	return &source{repository: r, ctx: ctx, name: name, address: r.address(name), version: v}, nil
}

func (s *source) Size() int64  { return s.version.size }
func (s *source) Close() error { return nil }

// ReadAt asks for what is missing of p until it is full.
func (s *source) ReadAt(p []byte, offset int64) (int, error) {
	switch {
	case offset < 0:
		return 0, s.repository.object(s.name, fault.Errorf(fault.Invalid, "offset %d", offset))
	case len(p) == 0:
		return 0, nil
	case offset >= s.version.size:
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), s.version.size-offset))
	got := 0
	err := s.repository.retry(s.ctx, func() (int, error) {
		start := got
		for got < want { // a server may send less of a range than it was asked for
			n, err := s.readRange(p[got:want], offset+int64(got))
			got += n
			if err != nil {
				return got - start, err
			}
		}
		return got - start, nil
	})
	switch {
	case err != nil:
		return got, s.repository.object(s.name, err)
	case want < len(p):
		return got, io.EOF
	}
	return got, nil
}

// readRange makes one request for p at offset, and says how much of it came: at least a byte, or an error.
func (s *source) readRange(p []byte, offset int64) (int, error) {
	header := nethttp.Header{"Range": {rangeOf(offset, int64(len(p)))}}
	s.version.demand(header)
	reply, err := s.repository.do(s.ctx, nethttp.MethodGet, s.address, header)
	if err != nil {
		return 0, err
	}
	defer reply.close()
	length, err := s.checkReply(reply, offset, int64(len(p)))
	if err != nil {
		return 0, err
	}
	n, err := io.ReadFull(reply, p[:length])
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = &attempt.Transient{Err: io.ErrUnexpectedEOF}
	}
	return n, err
}

// checkReply says how many bytes of those asked for a reply has.
func (s *source) checkReply(p *reply, offset, length int64) (int64, error) {
	switch p.StatusCode {
	case nethttp.StatusPartialContent:
	case nethttp.StatusOK:
		if err := s.version.check(p.Header); err != nil {
			return 0, err
		}
		return 0, errNoRanges("it answered 200 to a range")
	default:
		return 0, refused(p)
	}
	if err := s.version.check(p.Header); err != nil {
		return 0, err
	}
	if err := checkEncoding(p); err != nil {
		return 0, err
	}
	c, err := parseContentRange(p.Header.Get("Content-Range"))
	switch {
	case err != nil:
		return 0, err
	case c.total >= 0 && c.total != s.version.size:
		return 0, errChanged("it had %d bytes and has %d", s.version.size, c.total)
	case c.first != offset || c.last >= offset+length:
		return 0, fault.Errorf(fault.Unsupported, "the server sent bytes %d to %d when asked for %d to %d", c.first, c.last, offset, offset+length-1)
	}
	return c.last - c.first + 1, nil
}
