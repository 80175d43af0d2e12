package lxc

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// ConsoleLog implements hypervisor.Consoler. The log begins with the last Start; lxc keeps it below 1 MiB by
// moving the older part to a second file.
func (d *Driver) ConsoleLog(_ context.Context, id int, limit int) ([]byte, error) {
	r, err := d.look(id)
	if err != nil {
		return nil, err
	}
	p := pathsOf(r.Machine)
	text := readTail(p.consoleLog(), int64(max(0, limit)))
	if len(text) < limit {
		text = append(readTail(p.olderConsoleLog(), int64(limit-len(text))), text...)
	}
	return text, nil
}

// Console implements hypervisor.Consoler. lxc gives its terminal to one at a time; the driver takes it with
// the first reader and shares it among all.
func (d *Driver) Console(ctx context.Context, id int) (io.ReadWriteCloser, error) {
	turn, done, err := d.turns.Take(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("domain %d: console: %w", id, err)
	}
	defer done()
	r, err := d.settled(turn, id)
	if err != nil {
		return nil, err
	}
	if r.Phase != running {
		return nil, fault.Errorf(fault.WrongState, "lxc: domain %d is %s", id, r.Status)
	}
	d.mu.Lock()
	h := d.hubs[id]
	d.mu.Unlock()
	if h != nil {
		if c := h.attach(); c != nil {
			return c, nil
		}
	}
	terminal, connection, err := takeTerminal(turn, pathsOf(r.Machine).commandSocket(id))
	if err != nil {
		return nil, fmt.Errorf("domain %d: console: %w", id, err)
	}
	h = &hub{terminal: terminal, connection: connection, readers: make(map[*consoleReader]bool)}
	d.mu.Lock()
	d.hubs[id] = h
	d.mu.Unlock()
	c := h.attach()
	d.watchers.Go(h.pump)
	return c, nil
}

func (d *Driver) hangUp(id int) {
	d.mu.Lock()
	h := d.hubs[id]
	delete(d.hubs, id)
	d.mu.Unlock()
	if h != nil {
		h.close()
	}
}

// takeTerminal asks the monitor for the container's console, as lxc-console -t 0 does: a request of lxc's
// command protocol (commands.h: number 0 is LXC_CMD_GET_TTY_FD), answered with the terminal as a file
// descriptor. lxc takes the terminal back when the connection ends.
func takeTerminal(ctx context.Context, socket string) (*os.File, net.Conn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	connection := c.(*net.UnixConn)
	terminal, err := requestTerminal(connection)
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("lxc's command socket: %w", err)
	}
	return terminal, c, nil
}

func requestTerminal(c *net.UnixConn) (*os.File, error) {
	request := make([]byte, 16) // int cmd, int length of data, pointer (here: the terminal's number, 0)
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	answer, control := make([]byte, 16), make([]byte, 4096)
	n, nc, _, _, err := c.ReadMsgUnix(answer, control)
	if err != nil {
		return nil, err
	}
	if n < 4 {
		return nil, io.ErrUnexpectedEOF
	}
	messages, err := unix.ParseSocketControlMessage(control[:nc])
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) > 0 {
			for _, extra := range fds[1:] {
				unix.Close(extra)
			}
			unix.CloseOnExec(fds[0])
			if err := unix.SetNonblock(fds[0], true); err != nil {
				unix.Close(fds[0])
				return nil, err
			}
			return os.NewFile(uintptr(fds[0]), "console"), nil
		}
	}
	code := int32(binary.NativeEndian.Uint32(answer))
	return nil, fault.Errorf(fault.Busy, "no terminal (answer %d): somebody else is attached", code)
}

// consoleBuffer is how many bytes a reader may be behind; a slower one loses the oldest.
const consoleBuffer = 256 << 10

// hub shares one terminal among readers.
type hub struct {
	terminal   *os.File
	connection net.Conn
	mu         sync.Mutex
	readers    map[*consoleReader]bool
	closed     bool
}

type consoleReader struct {
	hub     *hub
	changed *sync.Cond // on hub.mu
	unread  []byte
	closed  bool
}

// attach is nil once the hub has closed.
func (h *hub) attach() io.ReadWriteCloser {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	c := &consoleReader{hub: h, changed: sync.NewCond(&h.mu)}
	h.readers[c] = true
	return c
}

// pump copies from the terminal to all readers until the terminal ends.
func (h *hub) pump() {
	buffer := make([]byte, 4096)
	for {
		n, err := h.terminal.Read(buffer)
		h.mu.Lock()
		for c := range h.readers {
			c.unread = append(c.unread, buffer[:n]...)
			c.unread = c.unread[max(0, len(c.unread)-consoleBuffer):]
			c.changed.Broadcast()
		}
		h.mu.Unlock()
		if err != nil {
			h.close()
			return
		}
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	h.terminal.Close()
	h.connection.Close()
	for c := range h.readers {
		c.closed = true
		c.changed.Broadcast()
	}
	clear(h.readers)
}

// Read implements io.Reader; it ends with io.EOF when the container does.
func (c *consoleReader) Read(p []byte) (int, error) {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	for len(c.unread) == 0 && !c.closed && len(p) > 0 {
		c.changed.Wait()
	}
	if len(c.unread) == 0 && c.closed {
		return 0, io.EOF
	}
	n := copy(p, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

// Write implements io.Writer.
func (c *consoleReader) Write(p []byte) (int, error) {
	c.hub.mu.Lock()
	closed := c.closed
	c.hub.mu.Unlock()
	if closed {
		return 0, io.ErrClosedPipe
	}
	return c.hub.terminal.Write(p)
}

// Close implements io.Closer; the last reader gives the terminal back.
func (c *consoleReader) Close() error {
	c.hub.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	delete(c.hub.readers, c)
	last := len(c.hub.readers) == 0
	c.hub.mu.Unlock()
	if last {
		c.hub.close()
	}
	return nil
}
