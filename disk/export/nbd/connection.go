package nbd

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

const (
	receiveBuffer = 132 << 10 // 32 requests of 4 KiB each; 256 KiB are a little faster for long writes and twice the memory
	replyBuffer   = 68 << 10
	largeRead     = 32 << 10 // from here on a read is sent from its file, if the Device has one: twice as fast at 1 MiB
	writeAlign    = 64 << 10 // of pieces of long writes, by offset
	piecesAhead   = 2        // received before the writing of them has begun
)

// connection is one client in the transmission phase. One goroutine reads requests and answers hits itself, into one
// send until no whole request is left in its buffer; for others there is a goroutine each, within the budget.
type connection struct {
	ctx    context.Context
	server *Server
	sock   *socket
	device export.Device
	quick  export.Quick // nil when the Device has none
	terms  terms
	share  share

	// Of the reading goroutine.
	in         []byte
	start, end int // of what is received and not yet used
	out        []byte
	outEnd     int
	noSendFile bool
	pieces     chan *job // of long writes; nil before the first

	sending sync.Mutex
	broken  atomic.Bool // nothing can be sent any more
}

func newConnection(ctx context.Context, s *Server, sock *socket, device export.Device, t terms, early []byte) *connection {
	c := &connection{ctx: ctx, server: s, sock: sock, device: device, terms: t, share: share{budget: s.config.Budget},
		in: make([]byte, receiveBuffer), out: make([]byte, replyBuffer)}
	c.quick, _ = device.(export.Quick)
	c.end = copy(c.in, early)
	return c
}

// run serves requests until the client disconnects (nil), goes away or breaks the protocol.
func (c *connection) run() error {
	defer func() {
		if c.pieces != nil {
			close(c.pieces)
		}
	}()
	for {
		if err := c.need(requestSize); err != nil {
			return err
		}
		r, ok := parseRequest(c.in[c.start:])
		if !ok {
			_ = c.flush()
			return fault.Errorf(fault.Invalid, "request without its magic")
		}
		c.start += requestSize
		if r.command == cmdDisconnect {
			return c.flush()
		}
		if err := c.handle(&r); err != nil {
			return err
		}
	}
}

// need receives until n bytes are there; what was to be answered is sent before waiting.
func (c *connection) need(n int) error {
	if c.end-c.start >= n {
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	if c.start == c.end {
		c.start, c.end = 0, 0
	} else if len(c.in)-c.start < n {
		c.end = copy(c.in, c.in[c.start:c.end])
		c.start = 0
	}
	for c.end-c.start < n {
		got, err := c.sock.receive(c.in[c.end:])
		if err != nil {
			return err
		}
		c.end += got
	}
	return nil
}

// receiveInto fills p; what was to be answered is sent before waiting.
func (c *connection) receiveInto(p []byte) error {
	k := copy(p, c.in[c.start:c.end])
	c.start += k
	if p = p[k:]; len(p) == 0 {
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	for len(p) > 0 {
		got, err := c.sock.receive(p)
		if err != nil {
			return err
		}
		p = p[got:]
	}
	return nil
}

func (c *connection) handle(r *request) error {
	if e, message := r.check(&c.terms); e != 0 {
		if err := c.answerError(r, e, message); err != nil || r.command != cmdWrite {
			return err
		}
		if r.length > maxPayload {
			_ = c.flush()
			return fault.Errorf(fault.Invalid, "write of %d bytes", r.length)
		}
		return c.skip(int(r.length))
	}
	switch {
	case r.command == cmdWrite:
		return c.write(r)
	case r.command != cmdRead:
		j, err := c.take(r, 0)
		if err == nil {
			go j.change()
		}
		return err
	case r.length == 0:
		return c.answer(r)
	}
	return c.read(r)
}

// skip drops a payload.
func (c *connection) skip(n int) error {
	for n > 0 {
		if err := c.need(1); err != nil {
			return err
		}
		k := min(n, c.end-c.start)
		c.start += k
		n -= k
	}
	return nil
}

// room makes place for n bytes of replies.
func (c *connection) room(n int) error {
	if len(c.out)-c.outEnd >= n {
		return nil
	}
	return c.flush()
}

// flush sends the replies that were put together.
func (c *connection) flush() error {
	if c.outEnd == 0 {
		return nil
	}
	err := c.send(c.out[:c.outEnd])
	c.outEnd = 0
	return err
}

// send sends whole replies. After an error nothing is sent any more and the reader ends.
func (c *connection) send(p []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	return c.sendLocked(p)
}

func (c *connection) sendLocked(p []byte) error {
	if c.broken.Load() {
		return unix.EPIPE
	}
	err := c.sock.send(p)
	if err != nil {
		c.breakOff()
	}
	return err
}

// breakOff ends the connection in the middle of what it does ("hard disconnect").
func (c *connection) breakOff() {
	c.broken.Store(true)
	c.sock.shutdown(unix.SHUT_RDWR)
}

// answer says that a request that gives nothing back succeeded. Structured replies are for those that do; a simple
// reply is shorter.
func (c *connection) answer(r *request) error {
	if err := c.room(chunkSize); err != nil {
		return err
	}
	c.outEnd += putDone(c.out[c.outEnd:], r, &c.terms)
	return nil
}

func (c *connection) answerError(r *request, e errno, message string) error {
	if err := c.room(maxError); err != nil {
		return err
	}
	c.outEnd += putError(c.out[c.outEnd:], r, &c.terms, e, message)
	return nil
}

// take makes a job of a request, with a buffer of n bytes. Before it waits, what was answered is sent.
func (c *connection) take(r *request, n int) (*job, error) {
	j := c.share.take(n, false)
	if j == nil {
		if err := c.flush(); err != nil {
			return nil, err
		}
		j = c.share.take(n, true)
	}
	j.c, j.request = c, *r
	return j, nil
}
