package nbd

import (
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// patience is how long a system call blocks before the runtime's poller takes over waiting. Blocking saves the way
// through the poller while a client is busy; the poller saves the thread when it is not.
const patience = 2 * time.Millisecond

// socketBuffer is asked for in each direction. The default of unix sockets, 208 KiB, makes a reader of 1 MiB wait for
// its writer several times.
const socketBuffer = 1 << 20

// socket is a connected stream socket that is used by its descriptor. The descriptor is in blocking mode, with time
// limits. One goroutine receives, one at a time sends.
type socket struct {
	conn  net.Conn
	raw   syscall.RawConn
	fd    int
	seats *Budget

	receiving   []byte // for received
	received    func(fd uintptr) bool
	receivedN   int
	receivedErr error
	writable    func(fd uintptr) bool
	writableErr error
	seated      bool // holds one of the seats
}

// newSocket takes conn over, after the negotiation.
func newSocket(conn net.Conn, budget *Budget) (*socket, error) {
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fault.Errorf(fault.Unsupported, "a connection of type %T has no descriptor", conn)
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{conn: conn, raw: raw, seats: budget}
	limit := unix.NsecToTimeval(int64(patience))
	e := raw.Control(func(fd uintptr) {
		s.fd = int(fd)
		if err = unix.SetNonblock(s.fd, false); err != nil {
			return
		}
		if err = unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return
		}
		if err = unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
			return
		}
		// Less is slower, not wrong.
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	})
	if e != nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("socket options: %w", err)
	}
	s.received = func(uintptr) bool {
		s.receivedN, s.receivedErr = recv(s.fd, s.receiving, unix.MSG_DONTWAIT)
		return s.receivedErr != unix.EAGAIN
	}
	s.writable = func(uintptr) bool {
		var n int
		p := [1]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
		n, s.writableErr = unix.Poll(p[:], 0)
		return n > 0 || s.writableErr != nil && s.writableErr != unix.EINTR
	}
	return s, nil
}

func recv(fd int, p []byte, flags int) (int, error) {
	for {
		n, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags), 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// receive waits for some bytes of p. io.EOF is the end.
func (s *socket) receive(p []byte) (int, error) {
	flags := unix.MSG_DONTWAIT
	if s.sit() {
		flags = 0
	}
	n, err := recv(s.fd, p, flags)
	if err == unix.EAGAIN {
		s.stand()
		s.receiving = p
		if err = s.raw.Read(s.received); err == nil {
			n, err = s.receivedN, s.receivedErr
		}
		s.receiving = nil
	}
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// sit takes a seat: while a goroutine blocks in a system call, it keeps one of the runtime's processors for a while,
// so that there are fewer seats than those.
func (s *socket) sit() bool {
	for !s.seated {
		n := s.seats.seats.Load()
		if n <= 0 {
			return false
		}
		s.seated = s.seats.seats.CompareAndSwap(n, n-1)
	}
	return true
}

func (s *socket) stand() {
	if s.seated {
		s.seated = false
		s.seats.seats.Add(1)
	}
}

// send sends all of p.
func (s *socket) send(p []byte) error {
	for len(p) > 0 {
		n, _, e := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
		switch e {
		case 0:
			p = p[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			if err := s.waitWritable(); err != nil {
				return err
			}
		default:
			return e
		}
	}
	return nil
}

// sendFile sends length bytes of a file; sent is how many, and err nil, when the file or the kernel has no more.
func (s *socket) sendFile(fd uintptr, at int64, length int) (sent int, err error) {
	for sent < length {
		n, _, e := unix.Syscall6(unix.SYS_SENDFILE, uintptr(s.fd), fd, uintptr(unsafe.Pointer(&at)), uintptr(length-sent), 0, 0)
		switch e {
		case 0:
			if n == 0 {
				return sent, nil
			}
			sent += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			if err := s.waitWritable(); err != nil {
				return sent, err
			}
		case unix.EPIPE, unix.ECONNRESET:
			return sent, e
		default: // of the file: whoever reads it another way sees what it is
			return sent, nil
		}
	}
	return sent, nil
}

func (s *socket) waitWritable() error {
	if err := s.raw.Write(s.writable); err != nil {
		return err
	}
	return s.writableErr
}

// shutdown wakes who receives or sends.
func (s *socket) shutdown(how int) { _ = unix.Shutdown(s.fd, how) }
