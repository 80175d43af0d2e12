package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/netspace"
	"hayloft/internal/undo"
)

// Namespace is a named network namespace of this run's own.
type Namespace struct {
	Name  string
	Inode uint64 // names it in /proc/PID/ns/net
}

func (n *Namespace) path() string { return filepath.Join(netspace.Dir, n.Name) }

// newNamespace makes the namespace with its loopback up. The name must be free.
func newNamespace(name string) (*Namespace, error) {
	n := &Namespace{Name: name}
	if err := os.MkdirAll(netspace.Dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(n.path(), os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	file.Close()
	var made undo.Stack
	defer made.Run()
	made.Push(func() error { return os.Remove(n.path()) })
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", n.path(), "", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	if n.Inode, err = inodeOf(n.path()); err != nil {
		return nil, errors.Join(err, unix.Unmount(n.path(), unix.MNT_DETACH))
	}
	made.Keep()
	return n, nil
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return st.Ino, nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// remove takes the name away; the namespace goes with its last process. A missing one is success.
func (n *Namespace) remove() error {
	err := unix.Unmount(n.path(), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("network namespace %s: %w", n.Name, err)
	}
	if err := os.Remove(n.path()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Inside runs fn on a thread of its own in the namespace. What fn starts from its own goroutine, processes
// and sockets, is there too; goroutines that it starts are not.
func (n *Namespace) Inside(fn func() error) error {
	return onOwnThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return fn()
	})
}

// enter moves the calling thread, which must end with its goroutine.
func (n *Namespace) enter() error {
	fd, err := unix.Open(n.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.Errorf(fault.NotFound, "network namespace %s: %w", n.Name, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace %s: %w", n.Name, err)
	}
	return nil
}

// onOwnThread runs fn on a thread that ends with it, and returns when that thread is gone.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	thread := 0
	go ownThread(func() {
		thread = unix.Gettid()
		result <- fn()
	})
	err := <-result
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		if _, gone := os.Stat("/proc/self/task/" + strconv.Itoa(thread)); gone != nil {
			return err
		}
		time.Sleep(wait)
	}
}

// ownThread runs fn on a thread that is not the process's first, which could not end, and ends it. It must be
// a goroutine's only work.
func ownThread(fn func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		fn()
		return // still locked: the thread ends
	}
	defer runtime.UnlockOSThread()
	other := make(chan struct{})
	go func() { defer close(other); ownThread(fn) }()
	<-other
}

// dialers are a few threads inside the namespace that connect for everybody outside.
type dialers struct {
	calls chan dialCall
	group sync.WaitGroup
}

type dialCall struct {
	ctx     context.Context
	address string
	limit   time.Duration
	answer  chan<- dialAnswer
}

type dialAnswer struct {
	conn net.Conn
	err  error
}

func newDialers(n *Namespace, threads int) (*dialers, error) {
	d := &dialers{calls: make(chan dialCall)}
	ready := make(chan error)
	for range threads {
		d.group.Add(1)
		go ownThread(func() {
			defer d.group.Done()
			err := n.enter()
			ready <- err
			if err == nil {
				d.serve()
			}
		})
	}
	var err error
	for range threads {
		err = errors.Join(err, <-ready)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *dialers) serve() {
	for call := range d.calls {
		dialer := net.Dialer{Timeout: call.limit, KeepAlive: -1}
		conn, err := dialer.DialContext(call.ctx, "tcp4", call.address)
		call.answer <- dialAnswer{conn, err}
	}
}

// dial connects to address, an IP address and a port, within limit.
func (d *dialers) dial(ctx context.Context, address string, limit time.Duration) (net.Conn, error) {
	answer := make(chan dialAnswer, 1)
	select {
	case d.calls <- dialCall{ctx, address, limit, answer}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	got := <-answer
	return got.conn, got.err
}

// close ends the threads. No dial may be under way.
func (d *dialers) close() {
	close(d.calls)
	d.group.Wait()
}
