package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/waiting"
)

// connection is one login at a host, with what runs over it.
type connection struct {
	host   *Host
	id     uint64
	client *ssh.Client
	socket *heard
	done   chan struct{} // closed when it is lost or closed

	// Under host.mu:
	refs     int // leases and sessions
	sessions int
	most     int // sessions that the host allows, as far as is known
	idle     *time.Timer
	cause    error // why it is lost

	runs     chan struct{} // hold the turns of Conn.Run
	worked   atomic.Bool   // a session was opened once
	opening  sync.Once     // of the SFTP client
	opened   chan struct{}
	files    *sftp.Client // both when opened is closed
	filesErr error
}

// connect dials and logs in. ctx bounds it, as does the configured limit. An sshd at which many log in at the same time
// (MaxStartups) hangs up on some of them before it knows who they are: they come again.
func (h *Host) connect(ctx context.Context) (*connection, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.config.ConnectLimit,
		fault.Errorf(fault.Unavailable, "host %s: no connection within %v", h, h.config.ConnectLimit))
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		c, err := h.connectOnce(ctx)
		if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) || ctx.Err() != nil {
			return c, err
		}
		timer := time.NewTimer(pause + rand.N(pause)) // not all of them together
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w: it hangs up, MaxStartups of its sshd may be too low: %w", context.Cause(ctx), err)
		}
	}
}

// Between two attempts to log in: at first, and at most.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = time.Second
)

func (h *Host) connectOnce(ctx context.Context) (*connection, error) {
	keys, err := readHostKeys(h.config.KnownHostsFile)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h, err)
	}
	me, err := newLogin(ctx, h.config.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h, err)
	}
	defer me.close()
	defer context.AfterFunc(ctx, me.close)() // it may not answer when it is to sign
	dialer := net.Dialer{}
	tcp, err := dialer.DialContext(ctx, "tcp", h.at.dial())
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fault.Errorf(fault.Unavailable, "host %s: %w", h, err)
	}
	socket := &heard{Conn: tcp}
	unwatch := context.AfterFunc(ctx, func() { socket.Close() })
	client, channels, requests, err := ssh.NewClientConn(socket, h.at.dial(), &ssh.ClientConfig{
		User:              h.at.user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(me.signers...)},
		HostKeyCallback:   keys.callback,
		HostKeyAlgorithms: keys.algorithms(h.at.dial(), socket.RemoteAddr()),
	})
	if !unwatch() && err == nil {
		client.Close()
		err = ctx.Err()
	}
	if err != nil {
		socket.Close()
		return nil, h.refused(ctx, err, me)
	}
	c := &connection{host: h, client: ssh.NewClient(client, channels, requests), socket: socket, done: make(chan struct{}), opened: make(chan struct{}),
		runs: make(chan struct{}, maxRuns), most: maxSessions}
	h.wait.Go(func() {
		err := c.client.Wait()
		c.lose(fmt.Errorf("the connection ended: %w", err))
		close(c.done)
		h.forget(c)
	})
	h.wait.Go(c.keepAlive)
	return c, nil
}

// refused says why a login failed.
func (h *Host) refused(ctx context.Context, err error, me login) error {
	var partial *ssh.ServerAuthError
	switch {
	case fault.ClassOf(err) == fault.Permission: // of the host's key; the library wraps it
		return fault.Errorf(fault.Permission, "%w", err)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &partial), strings.Contains(err.Error(), "unable to authenticate"):
		return fault.Errorf(fault.Permission, "host %s does not let %s in; shown were: %s", h.at.dial(), h.at.user, me.names())
	case strings.Contains(err.Error(), "no common algorithm for host key"):
		return fault.Errorf(fault.Permission, "host %s shows no key of a kind that is known of it: %w", h, err)
	}
	return fault.Errorf(fault.Unavailable, "host %s: %w", h, err)
}

// heard is a socket that knows when something last came in.
type heard struct {
	net.Conn
	last atomic.Int64 // nanoseconds since 1970
}

func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.last.Store(time.Now().UnixNano())
	return n, err
}

func (h *heard) silent() time.Duration { return time.Since(time.Unix(0, h.last.Load())) }

// keepAlive asks from time to time whether the host is there, and gives the connection up when nothing comes in.
// On a slow line the answer may have to queue up behind data: these count as well.
func (c *connection) keepAlive() {
	ticker := time.NewTicker(c.host.config.KeepAlive)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-c.done:
			return
		}
		answer := make(chan struct{})
		c.host.wait.Go(func() {
			_, _, _ = c.client.SendRequest("keepalive@openssh.com", true, nil)
			close(answer)
		})
		asked := time.Now()
		ticks := time.Duration(0) // that we were there for: of a process that was stopped, an answer may only not be read yet
		for waiting := true; waiting; {
			select {
			case <-answer:
				waiting = false
			case <-ticker.C:
				ticks++
				dead := c.host.config.DeadAfter
				if ticks*c.host.config.KeepAlive >= dead && time.Since(asked) >= dead && c.socket.silent() >= dead {
					c.lose(fmt.Errorf("it has not answered for %v", dead))
					return
				}
			case <-c.done:
				return
			}
		}
	}
}

// lose ends the connection; what waits for it gets errors. The first cause is kept.
func (c *connection) lose(cause error) {
	c.host.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.host.mu.Unlock()
	c.socket.Close() // not the client: a write that hangs must not keep us
}

// isLost asks the host once more when something on the connection ended as it does not by itself.
func (c *connection) isLost() bool {
	if _, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil); err != nil {
		<-c.done
		return true
	}
	return false
}

// err is what those get who waited for a connection that is lost.
func (c *connection) err() error {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.cause == nil {
		return fault.Errorf(fault.Unavailable, "host %s: the connection is in trouble", c.host)
	}
	return fault.Errorf(fault.Unavailable, "host %s: %w", c.host, c.cause)
}

// bigPacket is what sftp-server of OpenSSH takes and gives at once, in bytes; others promise only 32 KiB.
const bigPacket = 255 << 10

// sftp gives the one SFTP client of the connection. Whoever asks first opens it, for all: a context that ends
// leaves it to the others. A host that says nothing for too long is given up.
func (c *connection) sftp(ctx context.Context) (*sftp.Client, error) {
	ctx, done := waiting.On(ctx, "SFTP of host %s", c.host)
	defer done()
	c.opening.Do(func() {
		limit := time.AfterFunc(c.host.config.AnswerLimit, func() {
			c.lose(fmt.Errorf("its SFTP server has not answered for %v", c.host.config.AnswerLimit))
		})
		go func() { // not waited for: see open
			defer limit.Stop()
			c.files, c.filesErr = c.openSFTP()
			close(c.opened)
		}()
	})
	select {
	case <-c.opened:
		return c.files, c.filesErr
	case <-c.done:
		return nil, c.err()
	case <-ctx.Done():
		return nil, c.host.ended(ctx)
	}
}

func (c *connection) openSFTP() (*sftp.Client, error) {
	files, err := sftp.NewClient(c.client, sftp.UseConcurrentWrites(true))
	if err != nil {
		if c.isLost() {
			return nil, c.err()
		}
		return nil, fault.Errorf(fault.Unsupported, "host %s gives no SFTP: %w", c.host, err)
	}
	c.worked.Store(true)
	if _, ok := files.HasExtension("limits@openssh.com"); ok {
		err = sftp.MaxPacketUnchecked(bigPacket)(files)
	}
	return files, err
}
