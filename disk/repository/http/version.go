package http

import (
	"context"
	"fmt"
	nethttp "net/http"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

// version is what tells one content of an object from another.
type version struct {
	size     int64
	etag     string
	modified time.Time
	date     string // modified, as the server wrote it
}

func versionOf(header nethttp.Header, size int64) version {
	v := version{size: size, etag: header.Get("ETag"), date: header.Get("Last-Modified")}
	v.modified, _ = nethttp.ParseTime(v.date)
	return v
}

// demand has a server answer 412 when the object is not this version any more (RFC 9110, "Preconditions"). A weak
// tag does not match itself there, so check compares it in what comes back.
func (v version) demand(header nethttp.Header) {
	switch {
	case v.etag != "" && !strings.HasPrefix(v.etag, "W/"):
		header.Set("If-Match", v.etag)
	case v.etag == "" && !v.modified.IsZero():
		header.Set("If-Unmodified-Since", v.date)
	}
}

// check compares what a server says of itself with a range.
func (v version) check(header nethttp.Header) error {
	switch etag, date := header.Get("ETag"), header.Get("Last-Modified"); {
	case v.etag != "" && etag != "" && etag != v.etag:
		return errChanged("its ETag was %s and is %s", v.etag, etag)
	case v.etag == "" && v.date != "" && date != "" && date != v.date:
		return errChanged("it was of %s and is of %s", v.date, date)
	}
	return nil
}

// look asks for size and version of an object, by HEAD, or by a range of one byte where HEAD does not say.
func (r *Repository) look(ctx context.Context, name string) (version, error) {
	var v version
	err := r.retry(ctx, func() (int, error) {
		p, err := r.do(ctx, nethttp.MethodHead, r.address(name), nethttp.Header{})
		if err != nil {
			return 0, err
		}
		defer p.close()
		switch {
		case p.StatusCode == nethttp.StatusOK && p.ContentLength >= 0:
			if strings.EqualFold(p.Header.Get("Accept-Ranges"), "none") {
				return 0, errNoRanges("it says Accept-Ranges: none")
			}
			v = versionOf(p.Header, p.ContentLength)
			return 0, checkEncoding(p)
		case p.StatusCode == nethttp.StatusOK, p.StatusCode == nethttp.StatusMethodNotAllowed,
			p.StatusCode == nethttp.StatusNotImplemented, p.StatusCode == nethttp.StatusForbidden:
			v, err = r.lookByRange(ctx, name)
			return 0, err
		}
		return 0, refused(p)
	})
	return v, err
}

func (r *Repository) lookByRange(ctx context.Context, name string) (version, error) {
	p, err := r.do(ctx, nethttp.MethodGet, r.address(name), nethttp.Header{"Range": {"bytes=0-0"}})
	if err != nil {
		return version{}, err
	}
	defer p.close()
	switch p.StatusCode {
	case nethttp.StatusPartialContent:
		c, err := parseContentRange(p.Header.Get("Content-Range"))
		if err == nil && c.total < 0 {
			err = fault.Errorf(fault.Unsupported, "the server does not say how long it is")
		}
		if err == nil {
			err = checkEncoding(p)
		}
		return versionOf(p.Header, c.total), err
	case nethttp.StatusRequestedRangeNotSatisfiable: // an empty object has no first byte
		if p.Header.Get("Content-Range") == "bytes */0" {
			return versionOf(p.Header, 0), nil
		}
		return version{}, fault.Errorf(fault.Unsupported, "the server answered %s to a range of the first byte", p.Status)
	case nethttp.StatusOK:
		return version{}, errNoRanges("it answered 200 to a range")
	}
	return version{}, refused(p)
}

func errNoRanges(why string) error {
	return fault.Errorf(fault.Unsupported, "the server does not serve ranges of it: %s", why)
}

func checkEncoding(p *reply) error {
	if e := p.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return fault.Errorf(fault.Unsupported, "the server sends it with Content-Encoding %q", e)
	}
	return nil
}

// contentRange is "bytes first-last/total"; total is -1 for "*".
type contentRange struct{ first, last, total int64 }

func parseContentRange(s string) (contentRange, error) {
	bad := func() (contentRange, error) {
		return contentRange{}, fault.Errorf(fault.Unsupported, "the server sent Content-Range %q", s)
	}
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(rest, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return bad()
	}
	c := contentRange{total: -1}
	for _, f := range []struct {
		text string
		to   *int64
	}{{first, &c.first}, {last, &c.last}, {total, &c.total}} {
		if f.to == &c.total && f.text == "*" {
			continue
		}
		n, err := strconv.ParseUint(f.text, 10, 63)
		if err != nil {
			return bad()
		}
		*f.to = int64(n)
	}
	if c.last < c.first || c.total >= 0 && c.last >= c.total {
		return bad()
	}
	return c, nil
}

func rangeOf(offset, length int64) string { return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1) }
