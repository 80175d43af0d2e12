package http

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	nethttp "net/http"
	"net/url"
	"strconv"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository/attempt"
)

var errStalled = errors.New("no bytes came")

// retry does f as attempt.Retry does.
func (r *Repository) retry(ctx context.Context, f func() (int, error)) error {
	return attempt.Retry(ctx, r.patience, f)
}

// reply is a response that is given up when it stalls.
type reply struct {
	*nethttp.Response
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
	slots  chan struct{}
}

func (p *reply) close() {
	p.timer.Stop()
	if p.Response != nil {
		p.Body.Close()
	}
	p.cancel(nil)
	<-p.slots
}

// Read gives the body.
func (p *reply) Read(b []byte) (int, error) {
	n, err := p.Body.Read(b)
	if n > 0 {
		p.timer.Reset(p.stall)
	}
	if err != nil && err != io.EOF {
		err = p.failed(err)
	}
	return n, err
}

func (p *reply) failed(err error) error {
	if cause := context.Cause(p.ctx); cause == errStalled {
		err = fmt.Errorf("%w for %v", errStalled, p.stall)
	}
	return &attempt.Transient{Err: bare(err)}
}

// do sends a request and gives what comes back, whatever its status; failures of the connection are transient, or
// classified where another attempt cannot help. The caller closes the reply.
func (r *Repository) do(ctx context.Context, method string, u *url.URL, header nethttp.Header) (*reply, error) {
	header.Set("Accept-Encoding", "identity")
	header.Set("User-Agent", "hayloft")
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, attempt.Ended(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	p := &reply{ctx: ctx, cancel: cancel, stall: r.patience.Stall, slots: r.slots}
	p.timer = time.AfterFunc(p.stall, func() { cancel(errStalled) })
	request := (&nethttp.Request{Method: method, URL: u, Host: u.Host, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	err := r.login.sign(request)
	if err == nil {
		p.Response, err = r.client.Do(request)
		err = p.explain(err)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	p.timer.Reset(p.stall)
	return p, nil
}

// explain tells failures that another attempt cannot help from those that may be over soon.
func (p *reply) explain(err error) error {
	var certificate *tls.CertificateVerificationError
	switch class := fault.ClassOf(err); {
	case err == nil:
		return nil
	case errors.As(err, &certificate):
		return fault.Errorf(fault.Permission, "the server is not who it should be: %w", certificate)
	case class == fault.Unsupported || class == fault.Permission: // checkRedirect
		return bare(err)
	}
	return p.failed(err)
}

// refused turns a status that is not what was hoped for into an error.
func refused(p *reply) error {
	err := fmt.Errorf("the server answered %s", p.Status)
	switch code := p.StatusCode; code {
	case nethttp.StatusNotFound, nethttp.StatusGone:
		return fault.As(fault.NotFound, err)
	case nethttp.StatusUnauthorized, nethttp.StatusForbidden, nethttp.StatusProxyAuthRequired:
		return fault.As(fault.Permission, err)
	case nethttp.StatusPreconditionFailed, nethttp.StatusRequestedRangeNotSatisfiable:
		return errChanged("%v", err)
	case nethttp.StatusTooManyRequests, nethttp.StatusRequestTimeout, nethttp.StatusTooEarly, nethttp.StatusInternalServerError,
		nethttp.StatusBadGateway, nethttp.StatusServiceUnavailable, nethttp.StatusGatewayTimeout:
		seconds, _ := strconv.Atoi(p.Header.Get("Retry-After"))
		return &attempt.Transient{Err: err, After: time.Duration(max(0, min(seconds, 3600))) * time.Second}
	default:
		return fault.As(fault.Unsupported, err)
	}
}

func errChanged(format string, args ...any) error {
	return fault.Errorf(fault.Corrupt, "changed while it was read: "+format, args...)
}

// bare takes method and URL away, which the label says better.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
