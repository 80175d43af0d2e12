package plaindata

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// ServerConfig is what the storage server's end needs.
type ServerConfig struct {
	Base   string    // directory; regular files below it are served, links are not followed
	Stdin  io.Reader // the secret in hexadecimal as the first line, then signs of life; ends with the SSH connection
	Stdout io.Writer // gets "PORT\n"
	Listen string    // address to listen on, "" for all
	Peer   string    // address that may connect, "" for all
}

// OfSSH takes the addresses from what sshd says of its connection in SSH_CONNECTION.
func (c ServerConfig) OfSSH(connection string) ServerConfig {
	if f := strings.Fields(connection); len(f) == 4 {
		c.Peer, c.Listen = f[0], f[2]
	}
	return c
}

// Serve serves until ctx or Stdin ends, or nothing comes from there for as long as Lease.
func Serve(ctx context.Context, c ServerConfig) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := bufio.NewReader(io.LimitReader(c.Stdin, 1<<30))
	line, err := in.ReadString('\n')
	if err != nil {
		return fault.Errorf(fault.Invalid, "plain data: no secret on standard input: %w", err)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(line))
	if err != nil || len(secret) != SecretSize {
		return fault.Errorf(fault.Invalid, "plain data: the secret is not %d bytes in hexadecimal", SecretSize)
	}
	base, err := unix.Open(c.Base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("plain data: %s: %w", c.Base, err)
	}
	defer unix.Close(base)
	l, err := net.Listen("tcp", net.JoinHostPort(c.Listen, "0"))
	if err != nil {
		return fmt.Errorf("plain data: %w", err)
	}
	s := &server{config: c, base: base, secret: secret, files: map[uint32]*file{}, conns: map[net.Conn]bool{}}
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		s.end()
	})
	defer stop()
	defer s.wait.Wait()
	defer s.end()
	defer l.Close()
	if _, err := fmt.Fprintln(c.Stdout, l.Addr().(*net.TCPAddr).Port); err != nil {
		return fmt.Errorf("plain data: %w", err)
	}
	go watch(in, cancel) // standard input cannot be left: it ends with the process
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("plain data: %w", err)
		}
		if !s.admit(conn) {
			conn.Close()
		}
	}
}

// watch ends the server when nobody holds the other end of in any more.
func watch(in io.Reader, end func()) {
	timer := time.AfterFunc(Lease, end)
	defer timer.Stop()
	beat := make([]byte, 16)
	for {
		if _, err := in.Read(beat); err != nil {
			end()
			return
		}
		timer.Reset(Lease)
	}
}

const (
	maxConns = 64
	maxFiles = 4096
)

type server struct {
	config ServerConfig
	base   int
	secret []byte
	wait   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	ended bool
	files map[uint32]*file
	last  uint32
}

// file is an open file; it is closed when nobody is in the middle of using it.
type file struct {
	sync.RWMutex
	*os.File
	write  bool
	closed bool
}

func (s *server) admit(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if host, _, err := net.SplitHostPort(conn.RemoteAddr().String()); s.config.Peer != "" && (err != nil || !net.ParseIP(host).Equal(net.ParseIP(s.config.Peer))) {
		return false
	}
	if s.ended || len(s.conns) >= maxConns {
		return false
	}
	s.conns[conn] = true
	s.wait.Go(func() {
		defer func() {
			conn.Close()
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
		}()
		_ = conn.SetDeadline(time.Now().Add(handshakeLimit))
		if receive(conn, s.secret) == nil {
			_ = conn.SetDeadline(time.Time{})
			s.serve(conn.(*net.TCPConn))
		}
	})
	return true
}

func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for c := range s.conns {
		c.Close()
	}
	for handle, f := range s.files {
		delete(s.files, handle)
		s.wait.Go(f.end) // behind those who use it
	}
}

func (f *file) end() {
	f.Lock()
	defer f.Unlock()
	if !f.closed {
		f.closed = true
		f.File.Close()
	}
}

// serve answers requests until the connection ends.
func (s *server) serve(conn *net.TCPConn) {
	in := bufio.NewReaderSize(conn, 64<<10)
	var head [requestSize]byte
	buffer := make([]byte, 1<<20)
	for {
		r, err := readRequest(in, &head)
		if err != nil {
			return
		}
		if err := s.answer(conn, in, r, buffer); err != nil {
			return
		}
	}
}

// answer carries out one request; an error means that the connection is of no use any more.
func (s *server) answer(conn *net.TCPConn, in *bufio.Reader, r request, buffer []byte) error {
	switch r.op {
	case opOpen:
		if r.length > maxName {
			return errors.New("name too long")
		}
		name := buffer[:r.length]
		if _, err := io.ReadFull(in, name); err != nil {
			return err
		}
		handle, err := s.open(string(name), r.handle == 1)
		return reply(conn, uint64(handle), nil, err)
	case opClose:
		s.mu.Lock()
		f := s.files[r.handle]
		delete(s.files, r.handle)
		s.mu.Unlock()
		if f != nil {
			f.end()
		}
		return reply(conn, 0, nil, nil)
	case opWrite:
		if r.length > maxWrite {
			return errors.New("too much at once")
		}
		return s.write(conn, in, r, buffer)
	}
	f, err := s.use(r.handle)
	if err != nil {
		return reply(conn, 0, nil, err)
	}
	defer f.RUnlock()
	switch r.op {
	case opRead:
		return read(conn, f, r)
	case opPunch:
		return reply(conn, 0, nil, punch(f, r))
	case opNext:
		start, end, err := next(f, r.offset)
		b := binary.BigEndian.AppendUint64(nil, start)
		return reply(conn, 16, binary.BigEndian.AppendUint64(b, end), err)
	}
	return errors.New("unknown operation")
}

// open opens a regular file below the base, over no links.
func (s *server) open(name string, write bool) (uint32, error) {
	flags := uint64(unix.O_RDONLY)
	if write {
		flags = unix.O_RDWR
	}
	fd, err := unix.Openat2(s.base, name, &unix.OpenHow{Flags: flags | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return 0, err
	}
	f := &file{File: os.NewFile(uintptr(fd), name), write: write}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fault.Errorf(fault.Invalid, "is not a file")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
	case s.ended:
		err = fault.Errorf(fault.Unavailable, "is ending")
	case len(s.files) >= maxFiles:
		err = fault.Errorf(fault.Busy, "%d files are open", maxFiles)
	default:
		for s.last++; s.last == 0 || s.files[s.last] != nil; s.last++ {
		}
		s.files[s.last] = f
		return s.last, nil
	}
	f.File.Close()
	return 0, err
}

// use gives an open file, locked against its end.
func (s *server) use(handle uint32) (*file, error) {
	s.mu.Lock()
	f := s.files[handle]
	s.mu.Unlock()
	if f != nil {
		f.RLock()
		if !f.closed {
			return f, nil
		}
		f.RUnlock()
	}
	return nil, fault.Errorf(fault.Invalid, "no file with handle %d", handle)
}

func reply(conn io.Writer, value uint64, data []byte, err error) error {
	b := make([]byte, answerSize, answerSize+len(data)+256)
	if err != nil {
		text := err.Error()
		b[0] = byte(classOf(err)) + 1
		binary.BigEndian.PutUint64(b[1:], uint64(len(text)))
		b = append(b, text...)
	} else {
		binary.BigEndian.PutUint64(b[1:], value)
		b = append(b, data...)
	}
	_, err = conn.Write(b)
	return err
}

func classOf(err error) fault.Class {
	if c := fault.ClassOf(err); c != fault.Internal {
		return c
	}
	for _, e := range []unix.Errno{unix.EIO, unix.ESTALE, unix.ETIMEDOUT} {
		if errors.Is(err, e) {
			return fault.Unavailable
		}
	}
	return fault.Internal
}

// read sends a range straight from the page cache.
func read(conn *net.TCPConn, f *file, r request) error {
	fi, err := f.Stat()
	if err != nil {
		return reply(conn, 0, nil, err)
	}
	left := uint64(0)
	if size := uint64(fi.Size()); r.offset < size {
		left = min(r.length, size-r.offset)
	}
	head := make([]byte, answerSize)
	binary.BigEndian.PutUint64(head[1:], left)
	if _, err := conn.Write(head); err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	offset := int64(r.offset)
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for left > 0 {
			n, err := unix.Sendfile(int(fd), int(f.Fd()), &offset, int(min(left, 1<<30)))
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return false
			case err != nil:
				failed = err
				return true
			case n == 0: // it was cut meanwhile
				failed = io.ErrUnexpectedEOF
				return true
			default:
				left -= uint64(n)
			}
		}
		return true
	})
	return errors.Join(err, failed)
}

// write takes all data off the line, also when they cannot be written.
func (s *server) write(conn *net.TCPConn, in *bufio.Reader, r request, buffer []byte) error {
	f, failed := s.use(r.handle)
	if failed == nil {
		defer f.RUnlock()
		if !f.write {
			failed = fault.Errorf(fault.Permission, "is open for reading")
		}
	}
	offset := int64(r.offset)
	if failed == nil && offset < 0 {
		failed = fault.Errorf(fault.Invalid, "negative offset")
	}
	for left := r.length; left > 0; {
		part := buffer[:min(left, uint64(len(buffer)))]
		if _, err := io.ReadFull(in, part); err != nil {
			return err
		}
		if failed == nil {
			_, failed = f.WriteAt(part, offset)
		}
		offset += int64(len(part))
		left -= uint64(len(part))
	}
	return reply(conn, 0, nil, failed)
}

func punch(f *file, r request) error {
	if !f.write {
		return fault.Errorf(fault.Permission, "is open for reading")
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(r.offset), int64(r.length))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return fault.As(fault.Unsupported, err)
	}
	return err
}

func next(f *file, offset uint64) (start, end uint64, err error) {
	fd := int(f.Fd())
	a, err := unix.Seek(fd, int64(offset), unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return noData, noData, nil
	}
	if err != nil {
		return 0, 0, err
	}
	b, err := unix.Seek(fd, a, unix.SEEK_HOLE)
	return uint64(a), uint64(b), err
}
