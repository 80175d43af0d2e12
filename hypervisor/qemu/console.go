package qemu

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/hypervisor/qemu/qmp"
)

// readerBuffer bounds what waits for one slow reader of a console; older output is dropped.
const readerBuffer = 256 << 10

// console shares QEMU's one console connection between readers. It exists from the first to the last of them.
type console struct {
	conn    net.Conn
	mu      sync.Mutex
	readers map[*consoleReader]bool
	closed  bool
}

// Console implements hypervisor.Consoler. What the machine wrote before is in ConsoleLog.
func (d *Driver) Console(ctx context.Context, id int) (io.ReadWriteCloser, error) {
	ctx, dom, done, err := d.turn(ctx, id)
	if err != nil {
		return nil, err
	}
	defer done()
	dom.mu.Lock()
	proc, shared, r := dom.proc, dom.console, dom.rec
	dom.mu.Unlock()
	if proc == nil {
		return nil, fault.Errorf(fault.WrongState, "domain %d does not run: it has no console", id)
	}
	if shared != nil {
		if reader := shared.join(); reader != nil {
			return reader, nil
		}
	}
	conn, err := qmp.DialSocket(ctx, r.path(consoleSocket))
	if err != nil {
		return nil, fmt.Errorf("console of domain %d: %w", id, err)
	}
	shared = &console{conn: conn, readers: map[*consoleReader]bool{}}
	reader := shared.join()
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.proc != proc || d.ctx.Err() != nil {
		conn.Close()
		return nil, fault.Errorf(fault.WrongState, "domain %d does not run: it has no console", id)
	}
	dom.console = shared
	d.wg.Go(shared.pump)
	return reader, nil
}

// ConsoleLog implements hypervisor.Consoler.
func (d *Driver) ConsoleLog(_ context.Context, id int, max int) ([]byte, error) {
	dom, err := d.known(id)
	if err != nil {
		return nil, err
	}
	r := dom.record()
	text, err := tail(r.path(consoleLog), max)
	if err != nil {
		return nil, fmt.Errorf("console log of domain %d: %w", id, err)
	}
	return text, nil
}

// join adds a reader; nil when the console has just been closed.
func (c *console) join() *consoleReader {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	r := &consoleReader{console: c, wake: make(chan struct{}, 1), end: make(chan struct{})}
	c.readers[r] = true
	return r
}

func (c *console) leave(r *consoleReader) {
	c.mu.Lock()
	delete(c.readers, r)
	last := len(c.readers) == 0
	c.mu.Unlock()
	if last {
		c.close()
	}
}

// close ends the connection and with it every reader, after it has read what is there.
func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.conn.Close()
	for r := range c.readers {
		r.once.Do(func() { close(r.end) })
	}
}

func (c *console) pump() {
	defer c.close()
	buffer := make([]byte, 4096)
	for {
		n, err := c.conn.Read(buffer)
		c.mu.Lock()
		for r := range c.readers {
			r.put(buffer[:n])
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// consoleReader is one attached person or program.
type consoleReader struct {
	console *console
	mu      sync.Mutex
	pending []byte
	wake    chan struct{}
	end     chan struct{}
	once    sync.Once
}

func (r *consoleReader) put(p []byte) {
	r.mu.Lock()
	r.pending = append(r.pending, p...)
	if over := len(r.pending) - readerBuffer; over > 0 {
		r.pending = append([]byte(nil), r.pending[over:]...)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Read waits for output; io.EOF after the machine has ended or Close.
func (r *consoleReader) Read(p []byte) (int, error) {
	for {
		r.mu.Lock()
		n := copy(p, r.pending)
		r.pending = r.pending[n:]
		r.mu.Unlock()
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		select {
		case <-r.wake:
		case <-r.end:
			r.mu.Lock()
			rest := len(r.pending)
			r.mu.Unlock()
			if rest == 0 {
				return 0, io.EOF
			}
		}
	}
}

// Write types p on the console. Bytes of one Write stay together.
func (r *consoleReader) Write(p []byte) (int, error) {
	select {
	case <-r.end:
		return 0, io.ErrClosedPipe
	default:
		return r.console.conn.Write(p)
	}
}

// Close detaches this reader only. After the last one, what was typed and not yet taken by the guest is lost.
func (r *consoleReader) Close() error {
	r.once.Do(func() { close(r.end) })
	r.console.leave(r)
	return nil
}
