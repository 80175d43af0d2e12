package blockd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/internal/waiting"
)

// Client implements Service by asking a daemon's process. A call ends when its context does, there too.
type Client struct {
	http  *http.Client
	label string
	// patient clients ask again when the process is not there, or dies: until the call's context ends.
	patient bool
	wait    func(ctx context.Context) error // until asking again makes sense
}

var _ Service = (*Client)(nil)

// NewClient makes a client of the daemon with that state directory. When none runs, calls are fault.Unavailable.
func NewClient(stateDir string) *Client {
	return newClient(socketOf(stateDir))
}

func newClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	transport := &http.Transport{DialContext: dial, DisableCompression: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second}
	return &Client{http: &http.Client{Transport: transport}, label: "blockd at " + socket}
}

// Close closes connections that nobody uses.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// errLost is an answer that broke off.
var errLost = errors.New("does not answer")

// unreachable errors mean that the process is not there, or died: all calls may be made again.
func unreachable(err error) bool {
	return errors.Is(err, errLost)
}

func (c *Client) call(ctx context.Context, method string, arguments call, report func(done, total int64)) (reply, error) {
	ctx, done := waiting.On(ctx, "the data path's %s", method)
	defer done()
	for {
		r, err := c.ask(ctx, method, arguments, report)
		if err == nil && (r.Error == nil || !r.Error.Ending || !c.patient) {
			return r, r.Error.err()
		}
		if ctx.Err() != nil {
			return r, c.ended(ctx)
		}
		if err != nil && !unreachable(err) {
			return r, err
		}
		if !c.patient {
			return r, fault.Errorf(fault.Unavailable, "%s: %w", c.label, err)
		}
		waiting.Elsewhere(ctx, "its process, which does not answer")
		if err := c.wait(ctx); err != nil {
			return r, err
		}
	}
}

// ended is the error of a call whose context has ended: why nobody answers, where that is known.
func (c *Client) ended(ctx context.Context) error {
	if c.patient {
		if err := c.wait(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (c *Client) ask(ctx context.Context, method string, arguments call, report func(done, total int64)) (reply, error) {
	response, err := c.send(ctx, http.MethodPost, callPath+method, encode(arguments))
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	lines := json.NewDecoder(response.Body)
	for {
		var r reply
		if err := lines.Decode(&r); err != nil {
			if response.StatusCode != http.StatusOK {
				return r, fault.Errorf(fault.Unsupported, "%s: answers %s: it is of another build", c.label, response.Status)
			}
			return r, fmt.Errorf("%w: %w", errLost, err)
		}
		switch {
		case r.Done:
			_, _ = io.Copy(io.Discard, response.Body)
			return r, nil
		case r.Waiting != "":
			waiting.Elsewhere(ctx, r.Waiting)
		case r.Progress != nil && report != nil:
			report(r.Progress.Done, r.Progress.Total)
		}
	}
}

func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://blockd"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set(protocolHeader, strconv.Itoa(Protocol))
	response, err := c.http.Do(request)
	if err != nil && !errors.Is(err, syscall.EACCES) {
		// Whatever it says: at the other end of a unix socket there is a process, or there is none.
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	return response, err
}

// holding is an open connection that ends with the process at its other end.
type holding struct {
	Hello
	body io.ReadCloser
	rest *bufio.Reader
}

// hold connects and learns who answers.
func (c *Client) hold(ctx context.Context) (*holding, error) {
	response, err := c.send(ctx, http.MethodGet, holdPath, nil)
	if err != nil {
		return nil, err
	}
	h := &holding{body: response.Body, rest: bufio.NewReader(response.Body)}
	line, err := h.rest.ReadBytes('\n')
	if err != nil {
		err = fmt.Errorf("%w: %w", errLost, err)
	} else {
		err = json.Unmarshal(line, &h.Hello)
	}
	if err == nil && (response.StatusCode != http.StatusOK || h.PID == 0) {
		err = fault.Errorf(fault.Unsupported, "%s: answers %s: %s", c.label, response.Status, bytes.TrimSpace(line))
	}
	if err != nil {
		response.Body.Close()
		return nil, err
	}
	return h, nil
}

// wait returns when the process has ended, or the context of hold.
func (h *holding) wait() {
	_, _ = io.Copy(io.Discard, h.rest)
	h.body.Close()
}

// end asks the process to end.
func (c *Client) end(ctx context.Context) error {
	response, err := c.send(ctx, http.MethodPost, endPath, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var r reply
	if err := json.NewDecoder(response.Body).Decode(&r); err != nil {
		return fmt.Errorf("%s: asked to end: %w", c.label, err)
	}
	return r.Error.err()
}

// Base implements Service.
func (c *Client) Base(ctx context.Context, s BaseSpec) (cache.BaseStatus, error) {
	r, err := c.call(ctx, "base", call{Base: &s}, nil)
	if err != nil || r.Base == nil {
		return cache.BaseStatus{}, err
	}
	return *r.Base, nil
}

// Preload implements Service.
func (c *Client) Preload(ctx context.Context, p Preload, report func(done, total int64)) error {
	_, err := c.call(ctx, "preload", call{Preload: &p}, report)
	return err
}

// Export implements Service.
func (c *Client) Export(ctx context.Context, e Export) error {
	_, err := c.call(ctx, "export", call{Export: &e}, nil)
	return err
}

// Unexport implements Service.
func (c *Client) Unexport(ctx context.Context, name string) error {
	_, err := c.call(ctx, "unexport", call{Name: name}, nil)
	return err
}

// Settle implements Service.
func (c *Client) Settle(ctx context.Context, name string, report func(done, total int64)) error {
	_, err := c.call(ctx, "settle", call{Name: name}, report)
	return err
}

// Discard implements Service.
func (c *Client) Discard(ctx context.Context, name string) error {
	_, err := c.call(ctx, "discard", call{Name: name}, nil)
	return err
}

// DropBase implements Service.
func (c *Client) DropBase(ctx context.Context, digest string) error {
	_, err := c.call(ctx, "drop-base", call{Name: digest}, nil)
	return err
}

// Status implements Service.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.call(ctx, "status", call{}, nil)
	if err != nil || r.Status == nil {
		return Status{}, err
	}
	return *r.Status, nil
}
