package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
	"hayloft/internal/waiting"
)

const (
	// OpenSSH allows 10 sessions of a connection by default: SFTP, those of Conn.Start and Conn.Run, and these.
	maxSessions    = 7 // SFTP counted
	maxRuns        = 2 // of Conn.Run at a time
	maxConnections = 8
)

// Host is another host. All methods are safe for concurrent use. It implements command.Runner.
type Host struct {
	config Config
	at     address
	dial   chan struct{} // holds the turn to connect
	failed attempt       // the last one, for those who waited for it; by who has the turn
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu     sync.Mutex
	conns  []*connection
	made   uint64 // connections so far
	closed bool
}

var _ command.Runner = (*Host)(nil)

// New describes a host; nothing is contacted yet. fault.Invalid for what cannot be an address.
func New(c Config) (*Host, error) {
	at, err := parseAddress(c.Address)
	if err != nil {
		return nil, err
	}
	if at, err = at.withUser(); err != nil {
		return nil, err
	}
	h := &Host{config: c.withDefaults(), at: at, dial: make(chan struct{}, 1)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

// String is user@host:port.
func (h *Host) String() string { return h.at.String() }

// Hostname is the host without user and port, as it was given.
func (h *Host) Hostname() string { return h.at.host }

// Close ends all connections and what runs over them.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	conns := append([]*connection(nil), h.conns...)
	h.mu.Unlock()
	h.cancel()
	for _, c := range conns {
		c.lose(errors.New("closed by us"))
	}
	h.wait.Wait()
	return nil
}

// Conn is a share in a connection; it stays open until the last is released. It can be lost: see Done.
type Conn struct {
	c    *connection
	once sync.Once
}

// Connect gives a share in the connection that is there, or makes one. Errors: fault.Unavailable when the host
// cannot be reached, fault.Permission when it is not the right one or does not let us in.
func (h *Host) Connect(ctx context.Context) (*Conn, error) {
	c, err := h.take(ctx, func(c *connection) bool { return true })
	if err != nil {
		return nil, err
	}
	return &Conn{c: c}, nil
}

// Release gives the share back.
func (c *Conn) Release() { c.once.Do(func() { c.c.host.release(c.c, false) }) }

// Done is closed when the connection is lost.
func (c *Conn) Done() <-chan struct{} { return c.c.done }

// Err says why the connection is lost: fault.Unavailable.
func (c *Conn) Err() error { return c.c.err() }

// Lost reports whether the connection is lost, for one on whom something ended that does not end by itself: it asks
// the host. Then Done is closed.
func (c *Conn) Lost() bool { return c.c.isLost() }

// Lose ends the connection for all who share it, for one who knows that it is of no use any more.
func (c *Conn) Lose(cause error) { c.c.lose(cause) }

// SFTP is the client of the connection's one SFTP session, ready for packets of 255 KiB where the host is. It ends
// with the connection: don't close it. fault.Unsupported when the host has no SFTP.
func (c *Conn) SFTP(ctx context.Context) (*sftp.Client, error) { return c.c.sftp(ctx) }

// ID tells connections of this process apart.
func (c *Conn) ID() uint64 { return c.c.id }

// Run is Host.Run on this very connection, two at a time. fault.Unavailable when it has no room for one.
func (c *Conn) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	select {
	case c.c.runs <- struct{}{}:
		defer func() { <-c.c.runs }()
	case <-ctx.Done():
		return nil, c.c.host.ended(ctx)
	}
	session, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	defer c.c.host.release(c.c, true)
	return c.c.run(ctx, session, cmd)
}

// Start is Host.Start on this very connection; there is room for one at a time, as far as is known of the host.
func (c *Conn) Start(ctx context.Context, cmd command.Cmd) (*Process, error) {
	session, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	return c.c.startPiped(ctx, session, cmd)
}

// session opens a session on this connection; the caller releases it.
func (c *Conn) session(ctx context.Context) (*ssh.Session, error) {
	h := c.c.host
	h.mu.Lock()
	c.c.refs++
	c.c.sessions++
	h.mu.Unlock()
	session, err := c.c.open(ctx)
	if err != nil {
		h.release(c.c, true)
		return nil, c.c.noSession(ctx, err)
	}
	return session, nil
}

// take gives a live connection that fits, with a reference on it, or makes one.
func (h *Host) take(ctx context.Context, fits func(*connection) bool) (*connection, error) {
	c, err := h.find(fits)
	if c != nil || err != nil {
		return c, err
	}
	ctx, done := waiting.On(ctx, "a connection to host %s", h)
	defer done()
	came := time.Now()
	select {
	case h.dial <- struct{}{}:
		defer func() { <-h.dial }()
	case <-ctx.Done():
		return nil, h.ended(ctx)
	}
	if c, err = h.find(fits); c != nil || err != nil { // somebody made one while we waited
		return c, err
	}
	if h.failed.err != nil && h.failed.began.After(came) {
		return nil, h.failed.err // or the last of many would wait for all the others' attempts
	}
	began := time.Now()
	if c, err = h.add(ctx); err != nil && ctx.Err() == nil {
		h.failed = attempt{began, err}
	}
	return c, err
}

// attempt is one to connect that failed.
type attempt struct {
	began time.Time
	err   error
}

// add makes a connection, with a reference on it.
func (h *Host) add(ctx context.Context) (*connection, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	c, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.made++
	c.id = h.made
	if h.closed {
		c.socket.Close()
		return nil, h.closedErr()
	}
	c.refs = 1
	h.conns = append(h.conns, c)
	return c, nil
}

func (h *Host) closedErr() error { return fault.Errorf(fault.Unavailable, "host %s: closed", h) }

func (h *Host) ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.Errorf(fault.Unavailable, "host %s: no answer in time: %w", h, ctx.Err())
	}
	return fmt.Errorf("host %s: %w", h, ctx.Err())
}

// find takes a reference on a connection that is there; nil when none fits.
func (h *Host) find(fits func(*connection) bool) (*connection, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, h.closedErr()
	}
	live := 0
	for _, c := range h.conns {
		if c.cause != nil {
			continue
		}
		live++
		if fits(c) {
			if c.refs++; c.idle != nil {
				c.idle.Stop()
				c.idle = nil
			}
			return c, nil
		}
	}
	if live >= maxConnections {
		return nil, fault.Errorf(fault.Busy, "host %s: %d connections are full of running programs", h, live)
	}
	return nil, nil
}

// release gives a reference back; the last one leaves the connection to its idle time.
func (h *Host) release(c *connection, session bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.refs--
	if session {
		c.sessions--
	}
	if c.refs > 0 || c.cause != nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(h.config.Idle, func() {
		h.mu.Lock()
		still := c.refs == 0 && c.idle == timer
		if still && c.cause == nil {
			c.cause = errors.New("it was idle")
		}
		h.mu.Unlock()
		if still {
			c.socket.Close()
		}
	})
	c.idle = timer
}

// forget drops a connection that has ended.
func (h *Host) forget(c *connection) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.idle != nil {
		c.idle.Stop()
	}
	for i, other := range h.conns {
		if other == c {
			h.conns = append(h.conns[:i], h.conns[i+1:]...)
			return
		}
	}
}

// session opens a session on a connection that has room for one. The caller releases the connection.
func (h *Host) session(ctx context.Context) (*connection, *ssh.Session, error) {
	for {
		c, err := h.take(ctx, func(c *connection) bool { return c.sessions+1 < c.most }) // one is SFTP's
		if err != nil {
			return nil, nil, err
		}
		h.mu.Lock()
		c.sessions++
		open := c.sessions
		h.mu.Unlock()
		session, err := c.open(ctx)
		if err == nil {
			c.worked.Store(true)
			return c, session, nil
		}
		h.mu.Lock()
		alone := c.sessions == 1 && !c.worked.Load()
		h.mu.Unlock()
		h.release(c, true)
		var no *ssh.OpenChannelError
		if !errors.As(err, &no) || alone {
			return nil, nil, c.noSession(ctx, err)
		}
		h.mu.Lock()
		c.most = open // this host allows fewer
		h.mu.Unlock()
	}
}

// open opens a session. One that comes when its caller has left is closed again. A host that does not say yes or no in
// time is given up.
func (c *connection) open(ctx context.Context) (*ssh.Session, error) {
	ctx, done := waiting.On(ctx, "a session of host %s", c.host)
	defer done()
	type opened struct {
		session *ssh.Session
		err     error
	}
	answer := make(chan opened)
	left := make(chan struct{})
	defer close(left)
	go func() { // not waited for: the library may never answer about a connection that ended at this moment
		session, err := c.client.NewSession()
		select {
		case answer <- opened{session, err}:
		case <-left:
			if err == nil {
				session.Close()
			}
		}
	}()
	limit := time.NewTimer(c.host.config.AnswerLimit)
	defer limit.Stop()
	select {
	case o := <-answer:
		return o.session, o.err
	case <-c.done:
		return nil, c.err()
	case <-limit.C:
		c.lose(fmt.Errorf("it has not opened a session within %v", c.host.config.AnswerLimit))
		return nil, c.err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// noSession is what those get whose session could not be opened.
func (c *connection) noSession(ctx context.Context, err error) error {
	var no *ssh.OpenChannelError
	switch {
	case ctx.Err() != nil:
		return c.host.ended(ctx)
	case errors.As(err, &no):
		return fault.Errorf(fault.Unavailable, "host %s: no session, MaxSessions of its sshd may be too low: %w", c.host, err)
	}
	return c.err()
}
