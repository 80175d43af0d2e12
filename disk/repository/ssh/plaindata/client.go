package plaindata

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"hayloft/cloud/fault"
)

const (
	maxClientConns = 4
	answerLimit    = 60 * time.Second
	slowest        = 64 << 10 // bytes a second of a line that is still of use
	maxText        = 64 << 10 // bytes of an error
)

// Client is our end. Safe for concurrent use; requests beyond four at a time wait for each other.
type Client struct {
	address string
	secret  []byte
	ctx     context.Context
	cancel  context.CancelFunc
	slots   chan struct{}

	mu   sync.Mutex
	idle []net.Conn
	all  map[net.Conn]bool
}

// NewClient makes the client of a server that listens at address; connections are made when they are needed.
func NewClient(address string, secret []byte) *Client {
	c := &Client{address: address, secret: secret, slots: make(chan struct{}, maxClientConns), all: map[net.Conn]bool{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close ends all connections, and with them what runs.
func (c *Client) Close() {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.all {
		conn.Close()
	}
}

// LostError is a failure of the line or of the server: of a write that was under way nothing is known. It is
// fault.Unavailable, or fault.Permission when the other side is a stranger.
type LostError struct{ Err error }

func (e *LostError) Error() string { return "plain data: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *LostError) Unwrap() error { return e.Err }

func lost(err error) error {
	class := fault.Unavailable
	if fault.Is(err, fault.Permission) {
		class = fault.Permission
	}
	return fault.As(class, &LostError{err})
}

// do sends a request and has take read the answer's data. Without sure it may be sent twice.
func (c *Client) do(r request, data []byte, bytes int, sure bool, take func(conn net.Conn, value uint64) error) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-c.ctx.Done():
		return lost(net.ErrClosed)
	}
	for {
		conn, used, err := c.get()
		if err != nil {
			return lost(err)
		}
		_ = conn.SetDeadline(time.Now().Add(answerLimit + time.Duration(bytes/slowest)*time.Second))
		answered, err := exchange(conn, r, data, take)
		if answered {
			c.put(conn)
			return err
		}
		c.drop(conn)
		if !used || sure || c.ctx.Err() != nil {
			return lost(err)
		}
		// The connection may have died while nobody used it.
	}
}

// exchange reports whether the answer was read to its end; err may be the server's then.
func exchange(conn net.Conn, r request, data []byte, take func(net.Conn, uint64) error) (answered bool, err error) {
	buffers := net.Buffers{r.marshal(), data}
	if _, err := buffers.WriteTo(conn); err != nil {
		return false, err
	}
	var head [answerSize]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return false, err
	}
	value := binary.BigEndian.Uint64(head[1:])
	if head[0] == 0 {
		if take == nil {
			return true, nil
		}
		err := take(conn, value)
		return err == nil, err
	}
	if value > maxText {
		return false, errors.New("answer of another language")
	}
	text := make([]byte, value)
	if _, err := io.ReadFull(conn, text); err != nil {
		return false, err
	}
	return true, fault.Errorf(fault.Class(head[0]-1), "%s", text)
}

// get gives a connection nobody uses; used is one that has been idle.
func (c *Client) get() (conn net.Conn, used bool, err error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		conn, c.idle = c.idle[n-1], c.idle[:n-1]
	}
	c.mu.Unlock()
	if conn != nil {
		return conn, true, nil
	}
	dialer := net.Dialer{Timeout: handshakeLimit}
	conn, err = dialer.DialContext(c.ctx, "tcp", c.address)
	if err != nil {
		return nil, false, err
	}
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		conn.Close()
		return nil, false, net.ErrClosed
	}
	c.all[conn] = true
	c.mu.Unlock()
	_ = conn.SetDeadline(time.Now().Add(handshakeLimit))
	if err := greet(conn, c.secret); err != nil {
		c.drop(conn)
		return nil, false, err
	}
	return conn, false, nil
}

func (c *Client) put(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, conn)
}

func (c *Client) drop(conn net.Conn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, conn)
}

// Open opens a file below the base and gives its handle.
func (c *Client) Open(name string, write bool) (handle uint32, err error) {
	r := request{op: opOpen, length: uint64(len(name))}
	if write {
		r.handle = 1
	}
	err = c.do(r, []byte(name), 0, false, func(_ net.Conn, value uint64) error {
		handle = uint32(value)
		return nil
	})
	return handle, err
}

// CloseFile closes a handle.
func (c *Client) CloseFile(handle uint32) error {
	return c.do(request{op: opClose, handle: handle}, nil, 0, false, nil)
}

// ReadAt reads up to len(p) bytes; fewer only at the file's end.
func (c *Client) ReadAt(handle uint32, p []byte, offset int64) (n int, err error) {
	err = c.do(request{op: opRead, handle: handle, offset: uint64(offset), length: uint64(len(p))}, nil, len(p), false, func(conn net.Conn, value uint64) error {
		if value > uint64(len(p)) {
			return fmt.Errorf("%d bytes for %d", value, len(p))
		}
		n, err = io.ReadFull(conn, p[:value])
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// WriteAt writes all of p.
func (c *Client) WriteAt(handle uint32, p []byte, offset int64) error {
	for len(p) > 0 {
		part := p[:min(len(p), maxWrite)]
		if err := c.do(request{op: opWrite, handle: handle, offset: uint64(offset), length: uint64(len(part))}, part, len(part), true, nil); err != nil {
			return err
		}
		p, offset = p[len(part):], offset+int64(len(part))
	}
	return nil
}

// Punch makes a range a hole; fault.Unsupported where the file system has none.
func (c *Client) Punch(handle uint32, offset, length int64) error {
	return c.do(request{op: opPunch, handle: handle, offset: uint64(offset), length: uint64(length)}, nil, 0, true, nil)
}

// NextData is the first range with data at or after offset; io.EOF when there is none.
func (c *Client) NextData(handle uint32, offset int64) (start, end int64, err error) {
	var b [16]byte
	err = c.do(request{op: opNext, handle: handle, offset: uint64(offset)}, nil, 0, false, func(conn net.Conn, value uint64) error {
		if value != uint64(len(b)) {
			return errors.New("answer of another language")
		}
		_, err := io.ReadFull(conn, b[:])
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	if first := binary.BigEndian.Uint64(b[:]); first != noData {
		return int64(first), int64(binary.BigEndian.Uint64(b[8:])), nil
	}
	return 0, 0, io.EOF
}
