package nbd

import (
	"context"
	"time"

	"hayloft/cloud/fault"
)

// call is one request of a Client and what came back.
type call struct {
	request
	payload []byte // of NBD_CMD_WRITE
	into    []byte // of NBD_CMD_READ
	extents []descriptor
	got     int64 // bytes of content
	err     error
	done    chan struct{}

	// Guarded by Client.mu.
	busy      bool      // a goroutine of the client uses payload or into
	abandoned bool      // nobody waits any more
	ended     bool      // done is closed
	lost      time.Time // when it first lost its connection, or began without one
	losses    int       // how often it did
}

// descriptor is one of NBD_REPLY_TYPE_BLOCK_STATUS.
type descriptor struct{ length, state uint32 }

// do sends a request and waits for its reply. When ctx ends first, nothing uses the buffers any more.
func (c *Client) do(ctx context.Context, q *call) error {
	q.done = make(chan struct{})
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return c.errorf(fault.Unavailable, "closed: %w", context.Cause(c.ctx))
	}
	c.cookie++
	q.cookie = c.cookie
	c.calls[q.cookie] = q
	c.queue = append(c.queue, q)
	if c.session == nil {
		q.lost = time.Now()
	}
	c.mu.Unlock()
	c.nudge()
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if q.ended {
		return q.err
	}
	q.abandoned = true
	for q.busy { // in the middle of a message: there is no way back but to end the connection
		if c.session != nil {
			c.session.Close()
		}
		c.idle.Wait()
	}
	return c.errorf(fault.Unavailable, "request given up: %w", context.Cause(ctx))
}

// nudge wakes the writer.
func (c *Client) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// hold marks a call busy; false when nobody waits for it any more.
func (c *Client) hold(q *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if q.abandoned {
		return false
	}
	q.busy = true
	return true
}

func (c *Client) letGo(q *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.busy = false
	if q.abandoned {
		c.idle.Broadcast()
	}
}

// end gives a call its outcome. Holds mu.
func (c *Client) end(q *call, err error) {
	delete(c.calls, q.cookie)
	if q.abandoned || q.ended {
		return
	}
	q.err, q.ended = err, true
	close(q.done)
}
