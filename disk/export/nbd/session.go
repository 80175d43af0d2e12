package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"hayloft/cloud/fault"
)

const (
	clientBuffer   = 64 << 10
	firstReconnect = 20 * time.Millisecond
	slowReconnect  = time.Second
)

// run keeps a connection until the client is closed.
func (c *Client) run(conn net.Conn, in *bufio.Reader) {
	defer close(c.ended)
	for {
		err := c.serve(conn, in)
		c.mu.Lock()
		c.session = nil
		closed := c.ctx.Err() != nil
		for _, q := range c.calls {
			switch {
			case q.abandoned:
				delete(c.calls, q.cookie)
			case closed:
				c.end(q, c.errorf(fault.Unavailable, "closed: %w", context.Cause(c.ctx)))
			case fault.Is(err, fault.Corrupt): // would come again
				c.end(q, err)
			default:
				c.loses(q, err)
			}
		}
		c.mu.Unlock()
		if closed {
			return
		}
		c.log.Warn("nbd connection lost", "err", err)
		if conn, in = c.reconnect(); conn == nil {
			return
		}
		c.log.Info("nbd connection is back")
	}
}

// maxLosses is how many connections one request may lose: it may be what the server ends them for.
const maxLosses = 10

// loses is for a call without answer whose connection broke. Holds mu.
func (c *Client) loses(q *call, err error) {
	if q.lost.IsZero() {
		q.lost = time.Now()
	}
	if q.losses++; q.losses >= maxLosses {
		c.end(q, c.errorf(fault.Unavailable, "the connection was lost %d times without an answer: %w", q.losses, err))
	}
}

// serve uses one connection to its end, and says why that came.
func (c *Client) serve(conn net.Conn, in *bufio.Reader) error {
	stop := context.AfterFunc(c.ctx, func() { conn.Close() })
	defer stop()
	c.mu.Lock()
	c.session = conn
	c.queue = c.queue[:0]
	for _, cookie := range slices.Sorted(maps.Keys(c.calls)) {
		q := c.calls[cookie]
		q.got, q.extents, q.err = 0, nil, nil
		c.queue = append(c.queue, q)
	}
	c.mu.Unlock()
	ended, written := make(chan struct{}), make(chan error, 1)
	go func() {
		err := c.write(conn, ended)
		conn.Close()
		written <- err
	}()
	err := c.readReplies(in)
	close(ended)
	conn.Close()
	if werr := <-written; werr != nil && !fault.Is(err, fault.Corrupt) {
		err = errors.Join(err, werr)
	}
	return err
}

// write sends what is in the queue.
func (c *Client) write(conn net.Conn, ended <-chan struct{}) error {
	out := bufio.NewWriterSize(conn, clientBuffer)
	var head [requestSize]byte
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.mu.Unlock()
			if err := out.Flush(); err != nil {
				return err
			}
			select {
			case <-c.wake:
				continue
			case <-ended:
				return nil
			}
		}
		q := c.queue[0]
		c.queue = slices.Delete(c.queue, 0, 1)
		if q.abandoned {
			delete(c.calls, q.cookie)
			c.mu.Unlock()
			continue
		}
		q.busy = true
		c.mu.Unlock()
		q.request.put(head[:])
		_, err := out.Write(head[:])
		if err == nil {
			_, err = out.Write(q.payload)
		}
		c.letGo(q)
		if err != nil {
			return err
		}
	}
}

// reconnect tries until it can or the client is closed. Calls that waited too long fail meanwhile.
func (c *Client) reconnect() (net.Conn, *bufio.Reader) {
	for pause := firstReconnect; ; pause = min(2*pause, slowReconnect) {
		ctx, cancel := context.WithTimeout(c.ctx, c.dialer.Patience)
		conn, in, terms, err := c.connect(ctx)
		cancel()
		if err == nil && terms != c.peer {
			conn.Close()
			err = c.errorf(fault.Corrupt, "it came back with another size or other features")
		}
		if err == nil {
			return conn, in
		}
		timer := time.NewTimer(min(pause, c.impatience(err)))
		select {
		case <-timer.C:
		case <-c.ctx.Done():
			timer.Stop()
			c.mu.Lock()
			for _, q := range c.calls {
				c.end(q, c.errorf(fault.Unavailable, "closed: %w", context.Cause(c.ctx)))
			}
			c.mu.Unlock()
			return nil, nil
		}
	}
}

// impatience ends the calls that waited too long and says when the next will have.
func (c *Client) impatience(err error) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.dialer.Patience
	for _, q := range c.calls {
		left := c.dialer.Patience - time.Since(q.lost)
		if left <= 0 {
			c.end(q, fmt.Errorf("%w (waited %v)", c.unavailable(err), c.dialer.Patience))
		} else {
			next = min(next, left)
		}
	}
	return max(next, time.Millisecond)
}

func (c *Client) unavailable(err error) error {
	if fault.Is(err, fault.Corrupt) {
		return err
	}
	return fault.As(fault.Unavailable, err)
}
