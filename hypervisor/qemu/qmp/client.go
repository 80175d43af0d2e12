// Package qmp speaks the QEMU Machine Protocol: commands with typed errors, events, and passing of open
// files, on one connection to a QEMU.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine bounds one message, so that a QEMU taken over by its guest cannot exhaust our memory.
const maxLine = 8 << 20

// maxEvents bounds the queue of events nobody has fetched.
const maxEvents = 1024

// writeLimit bounds how long a QEMU that reads nothing holds up a command whose context has no end.
const writeLimit = 10 * time.Second

// ErrClosed is in the error of every call on a connection that has ended.
var ErrClosed = errors.New("connection is closed")

// Client is one connection. All methods are safe for concurrent use.
type Client struct {
	conn    net.Conn
	version Version

	writing sync.Mutex // one command at a time on the wire

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan message
	events  []Event
	wake    chan struct{} // holds a token when events has something new
	err     error
	done    chan struct{}
}

// Dial connects to QEMU's socket at path, which may be longer than a socket address holds.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := DialSocket(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("qmp: %w", err)
	}
	return Connect(ctx, conn)
}

// Connect takes a connection on which QEMU has yet to greet, and leaves the capabilities negotiation
// done. It owns conn, and closes it on error.
func Connect(ctx context.Context, conn net.Conn) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(conn, 4096)
	line, err := readLine(r)
	if err == nil {
		var m message
		if m, err = decode(line); err == nil && m.Greeting == nil {
			err = errors.New("qmp: no greeting")
		} else if err == nil {
			c := newClient(conn, m.Greeting)
			go c.read(r)
			err = c.Execute(ctx, "qmp_capabilities", nil, nil)
			if stop() && err == nil {
				return c, nil
			}
			c.Close()
		}
	}
	conn.Close()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return nil, fmt.Errorf("qmp: handshake: %w", err)
}

func newClient(conn net.Conn, g *greeting) *Client {
	q := g.Version.QEMU
	return &Client{conn: conn, waiting: map[uint64]chan message{}, wake: make(chan struct{}, 1), done: make(chan struct{}),
		version: Version{q.Major, q.Minor, q.Micro, g.Version.Package}}
}

// Version is QEMU's version.
func (c *Client) Version() Version { return c.version }

// Execute runs a command; args (may be nil) is marshalled, and the answer is unmarshalled into out (may be
// nil). A refusal is an *Error. When ctx ends first the command may still take effect.
func (c *Client) Execute(ctx context.Context, command string, args, out any) error {
	return c.execute(ctx, command, args, out, nil)
}

// SendFile gives QEMU the open file under name, for "fd:name" addresses. Connections other than unix
// sockets cannot.
func (c *Client) SendFile(ctx context.Context, name string, f *os.File) error {
	return c.execute(ctx, "getfd", map[string]string{"fdname": name}, nil, f)
}

func (c *Client) execute(ctx context.Context, command string, args, out any, f *os.File) error {
	id, reply, err := c.register()
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	defer c.forget(id)
	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id}
	line, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	if err := c.write(ctx, append(line, '\n'), f); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case m := <-reply:
		return m.answer(command, out)
	case <-ctx.Done():
		err = ctx.Err()
	case <-c.done:
		err = c.Err()
	}
	select {
	case m := <-reply: // the end came after the answer
		return m.answer(command, out)
	default:
		return fmt.Errorf("qmp %s: %w", command, err)
	}
}

func (c *Client) register() (uint64, chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.nextID++
	reply := make(chan message, 1)
	c.waiting[c.nextID] = reply
	return c.nextID, reply, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	delete(c.waiting, id)
	c.mu.Unlock()
}

// write sends one line whole; a line cut short by a deadline would spoil the stream, so that ends it.
func (c *Client) write(ctx context.Context, line []byte, f *os.File) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	c.conn.SetWriteDeadline(time.Now().Add(writeLimit))
	var err error
	if f == nil {
		_, err = c.conn.Write(line)
	} else if u, ok := c.conn.(*net.UnixConn); ok {
		err = sendFile(u, line, f)
	} else {
		return errors.New("only a unix socket passes files")
	}
	if err != nil {
		c.fail(err)
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

func sendFile(u *net.UnixConn, line []byte, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = u.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, sent)
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return nil, fmt.Errorf("qmp: message longer than %d bytes", maxLine)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

func (c *Client) read(r *bufio.Reader) {
	for {
		line, err := readLine(r)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.EOF
			}
			c.fail(err)
			return
		}
		m, err := decode(line)
		if err != nil {
			c.fail(err)
			return
		}
		c.deliver(m)
	}
}

func (c *Client) deliver(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case m.Event != "":
		if len(c.events) >= maxEvents {
			c.events = []Event{{Name: EventsLost}}
		}
		c.events = append(c.events, m.event())
		select {
		case c.wake <- struct{}{}:
		default:
		}
	case m.ID != nil:
		if reply, ok := c.waiting[*m.ID]; ok {
			delete(c.waiting, *m.ID)
			reply <- m
		}
	}
}

// Next returns the next event in order, waiting for it. It fails when the connection has ended and all
// events before that have been returned, or when ctx ends. One caller at a time.
func (c *Client) Next(ctx context.Context) (Event, error) {
	for {
		c.mu.Lock()
		if len(c.events) > 0 {
			e := c.events[0]
			c.events = c.events[1:]
			c.mu.Unlock()
			return e, nil
		}
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return Event{}, fmt.Errorf("qmp: %w", err)
		}
		select {
		case <-c.wake:
		case <-c.done:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// fail ends the connection; the first cause stays.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	first := c.err == nil
	if first {
		c.err = fmt.Errorf("%w: %w", ErrClosed, cause)
	}
	c.mu.Unlock()
	if first {
		c.conn.Close()
		close(c.done)
	}
}

// Done is closed when the connection has ended, for which Err then holds the cause.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is the cause of the connection's end, nil before.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. QEMU goes on and takes the next one.
func (c *Client) Close() error {
	c.fail(errors.New("closed by us"))
	return nil
}
