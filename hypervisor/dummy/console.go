package dummy

import (
	"context"
	"io"
	"sync"
)

// consoleBuffer is how many bytes a reader may be behind; a slower one loses the oldest.
const consoleBuffer = 64 << 10

// console is one attached reader: what any of a machine's consoles is given, all of them read.
type console struct {
	driver  *Driver
	id      int
	mu      sync.Mutex
	changed sync.Cond
	unread  []byte
	closed  bool
}

// Console implements hypervisor.Consoler: it echoes.
func (d *Driver) Console(_ context.Context, id int) (io.ReadWriteCloser, error) {
	if _, err := d.running(id); err != nil {
		return nil, err
	}
	c := &console{driver: d, id: id}
	c.changed.L = &c.mu
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.consoles[id] == nil {
		d.consoles[id] = make(map[*console]bool)
	}
	d.consoles[id][c] = true
	return c, nil
}

// ConsoleLog implements hypervisor.Consoler: one line per boot.
func (d *Driver) ConsoleLog(_ context.Context, id int, limit int) ([]byte, error) {
	r, err := d.look(id)
	if err != nil {
		return nil, err
	}
	text := r.consoleText()
	return []byte(text[max(0, len(text)-max(0, limit)):]), nil
}

// hangUp ends all consoles of a machine. The caller holds d.mu.
func (d *Driver) hangUp(id int) {
	for c := range d.consoles[id] {
		c.end()
	}
	delete(d.consoles, id)
}

func (c *console) end() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.changed.Broadcast()
}

// Read implements io.Reader; it ends with io.EOF when the machine does.
func (c *console) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
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
func (c *console) Write(p []byte) (int, error) {
	c.driver.mu.Lock()
	defer c.driver.mu.Unlock()
	all := c.driver.consoles[c.id]
	if !all[c] {
		return 0, io.ErrClosedPipe
	}
	for other := range all {
		other.mu.Lock()
		other.unread = append(other.unread, p...)
		other.unread = other.unread[max(0, len(other.unread)-consoleBuffer):]
		other.mu.Unlock()
		other.changed.Broadcast()
	}
	return len(p), nil
}

// Close implements io.Closer.
func (c *console) Close() error {
	c.driver.mu.Lock()
	delete(c.driver.consoles[c.id], c)
	if len(c.driver.consoles[c.id]) == 0 {
		delete(c.driver.consoles, c.id)
	}
	c.driver.mu.Unlock()
	c.end()
	return nil
}
