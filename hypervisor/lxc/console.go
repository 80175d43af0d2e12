package lxc

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

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
	for {
		before, _ := os.Stat(p.consoleLog())
		text := readTail(p.consoleLog(), int64(max(0, limit)))
		if len(text) < limit {
			text = append(readTail(p.olderConsoleLog(), int64(limit-len(text))), text...)
		}
		// When lxc has moved it meanwhile, what was read may be there twice or not at all.
		if after, _ := os.Stat(p.consoleLog()); before == nil || after == nil || os.SameFile(before, after) {
			return text, nil
		}
	}
}

// console is one reader: it follows the console's log and writes to the console's terminal. lxc's own way,
// lxc-console, lets in one reader at a time, and a container that reboots meanwhile does not come back
// ("Failed to add console handlers to mainloop" in lxc 5.0.2). This one leaves lxc as it is.
type console struct {
	driver *Driver
	id     int
	path   string
	log    *os.File
	news   *os.File // inotify of the log's directory
	mu     sync.Mutex
	closed bool
}

// Console implements hypervisor.Consoler. It goes on over reboots.
func (d *Driver) Console(ctx context.Context, id int) (io.ReadWriteCloser, error) {
	turn, done, err := d.turns.Take(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("domain %d: console: %w", id, err)
	}
	defer done()
	if _, err = d.settled(turn, id); err != nil {
		return nil, err
	}
	r, err := d.runningNow(id)
	if err != nil {
		return nil, err
	}
	c, err := follow(pathsOf(r.Machine))
	if err != nil {
		return nil, fmt.Errorf("domain %d: console: %w", id, err)
	}
	c.driver, c.id = d, id
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.consoles[id] == nil {
		d.consoles[id] = make(map[*console]bool)
	}
	d.consoles[id][c] = true
	return c, nil
}

func follow(p paths) (*console, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	news := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, p.dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		news.Close()
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	log, err := os.Open(p.consoleLog())
	if err == nil {
		_, err = log.Seek(0, io.SeekEnd)
	}
	if err != nil {
		news.Close()
		return nil, err
	}
	return &console{path: p.consoleLog(), log: log, news: news}, nil
}

// hangUp ends all consoles of a container once they have read what is there.
func (d *Driver) hangUp(id int) {
	d.mu.Lock()
	consoles := d.consoles[id]
	delete(d.consoles, id)
	d.mu.Unlock()
	for c := range consoles {
		c.news.Close()
	}
}

// Read implements io.Reader; it ends with io.EOF when the container does. One Read at a time.
func (c *console) Read(p []byte) (int, error) {
	events := make([]byte, 4096)
	for over := false; ; {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return 0, io.EOF
		}
		moved := c.moved() // before it is read, so that nothing is written to it after its last Read
		n, _ := c.log.Read(p)
		rotated := n == 0 && moved && c.rotate()
		c.mu.Unlock()
		switch {
		case n > 0 || len(p) == 0:
			return n, nil
		case rotated:
		case over:
			return 0, io.EOF
		default:
			_, err := c.news.Read(events)
			over = err != nil
		}
	}
}

// moved says whether lxc has moved the read file away and begun the next. The caller holds c.mu.
func (c *console) moved() bool {
	own, err := c.log.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(c.path)
	return err == nil && !os.SameFile(own, now)
}

// rotate goes on to the next file. The caller holds c.mu.
func (c *console) rotate() bool {
	next, err := os.Open(c.path)
	if err != nil {
		return false
	}
	c.log.Close()
	c.log = next
	return true
}

// Write implements io.Writer. What is typed during a reboot is lost, as on a real terminal.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	r, err := c.driver.look(c.id)
	if closed || err != nil || r.Phase != running {
		return 0, io.ErrClosedPipe
	}
	terminal, err := terminalOf(r.Monitor)
	if err != nil {
		return 0, fmt.Errorf("domain %d: console: %w", c.id, err)
	}
	defer unix.Close(terminal)
	return typeInto(terminal, p)
}

// Close implements io.Closer.
func (c *console) Close() error {
	c.driver.mu.Lock()
	delete(c.driver.consoles[c.id], c)
	if len(c.driver.consoles[c.id]) == 0 {
		delete(c.driver.consoles, c.id)
	}
	c.driver.mu.Unlock()
	c.news.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.log.Close()
	}
	return nil
}

// terminalOf is a duplicate of the monitor's side of the console, the only terminal it has (tty.max is 0).
func terminalOf(monitor process) (int, error) {
	pidfd, err := unix.PidfdOpen(monitor.PID, 0)
	if err != nil || !monitor.alive() {
		return -1, errNoProcess
	}
	defer unix.Close(pidfd)
	dir := fmt.Sprintf("/proc/%d/fd/", monitor.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1, err
	}
	for _, e := range entries {
		target, err := os.Readlink(dir + e.Name())
		if err != nil || !strings.HasSuffix(target, "ptmx") {
			continue
		}
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			continue
		}
		return unix.PidfdGetfd(pidfd, fd, 0)
	}
	return -1, fault.Errorf(fault.Busy, "the container has no terminal now")
}

// The terminal is shared with the monitor, so it stays in blocking mode; small pieces, each after the
// terminal has said that there is room, do not block.
const (
	pieceBytes = 64
	roomLimit  = 5 * time.Second
)

func typeInto(terminal int, p []byte) (written int, err error) {
	for written < len(p) {
		room := []unix.PollFd{{Fd: int32(terminal), Events: unix.POLLOUT}}
		n, err := unix.Poll(room, int(roomLimit.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err == nil && (n == 0 || room[0].Revents&unix.POLLOUT == 0) {
			err = fault.Errorf(fault.Busy, "the guest does not read from its console")
		}
		if err != nil {
			return written, err
		}
		n, err = unix.Write(terminal, p[written:min(len(p), written+pieceBytes)])
		if err != nil {
			return written, os.NewSyscallError("write", err)
		}
		written += n
	}
	return written, nil
}
