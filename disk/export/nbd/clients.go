package nbd

import (
	"bufio"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/export"
)

// peer is one connected client.
type peer struct {
	conn    net.Conn
	mu      sync.Mutex
	sock    *socket // in the transmission phase
	stopped bool
}

func (p *peer) isStopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped
}

// negotiate says that the negotiation begins, and ends it when it takes long; not when the server stops.
func (p *peer) negotiate() (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return false, nil
	}
	return true, p.conn.SetDeadline(time.Now().Add(negotiationTime))
}

// transmit says that the transmission phase begins, or with nil that it ended; not when the server stops.
func (p *peer) transmit(s *socket) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sock = s
	return !p.stopped
}

// stop lets the peer send no more; hard also ends what is sent to it.
func (p *peer) stop(hard bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	switch {
	case p.sock == nil:
		_ = p.conn.SetDeadline(time.Unix(1, 0)) // ends a negotiation
	case hard:
		p.sock.shutdown(unix.SHUT_RDWR)
	default:
		p.sock.shutdown(unix.SHUT_RD)
	}
}

// clients are those of one call of Serve.
type clients struct {
	sync.WaitGroup
	mu  sync.Mutex
	all map[*peer]struct{}
}

func (c *clients) add(p *peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[*peer]struct{}{}
	}
	c.all[p] = struct{}{}
}

func (c *clients) remove(p *peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, p)
}

func (c *clients) stop(hard bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.all {
		p.stop(hard)
	}
}

// negotiate is the handshake phase of one connection; early is what the client
// sent of the next phase.
func (s *Server) negotiate(conn net.Conn, device export.Device) (t terms, early []byte, err error) {
	n := negotiation{in: bufio.NewReaderSize(conn, 512), out: bufio.NewWriterSize(conn, 4096), names: s.config.Names,
		description: s.config.Description, terms: terms{size: device.Size(), readOnly: device.ReadOnly()}}
	n.flags = flagHasFlags | flagFlush | flagFUA | flagMultiConn | flagCache
	if n.terms.readOnly {
		n.flags |= flagReadOnly
	} else {
		n.flags |= flagTrim | flagWriteZeroes | flagFastZero
	}
	if err := n.run(); err != nil {
		return t, nil, err
	}
	if early, err = n.in.Peek(n.in.Buffered()); err != nil {
		return t, nil, err
	}
	return n.terms, early, conn.SetDeadline(time.Time{})
}
