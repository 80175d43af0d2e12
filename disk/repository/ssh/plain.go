package ssh

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/ssh/plaindata"
	"hayloft/internal/command"
	"hayloft/internal/remote"
	"hayloft/internal/waiting"
)

// plainIdle is how long the unencrypted way stays open with no file in use.
const plainIdle = 30 * time.Second

// plainLink is the place of the unencrypted way beside a connection.
type plainLink struct {
	mu  sync.Mutex
	way *plainWay // nil: none, or one that has ended
}

// plainWay is the storage server's end, a child of the connection, and our client of it.
type plainWay struct {
	link    *link
	process *remote.Process
	client  *plaindata.Client
	stop    chan struct{}

	// Under the mutex of plainLink:
	files int
	idle  *time.Timer
	ended bool
}

// plainFile is an object opened the unencrypted way.
type plainFile struct {
	way    *plainWay
	handle uint32
	once   sync.Once
}

// openPlain opens an object the unencrypted way, which is made when it is not there yet.
func (r *Repository) openPlain(ctx context.Context, l *link, name string, write bool) (*plainFile, error) {
	way, err := r.startPlain(ctx, l)
	if err != nil {
		return nil, err
	}
	handle, err := way.client.Open(name, write)
	if err != nil {
		way.leave()
		return nil, l.broken(err)
	}
	return &plainFile{way: way, handle: handle}, nil
}

// startPlain starts the other end where it does not run, and counts one file more.
func (r *Repository) startPlain(ctx context.Context, l *link) (*plainWay, error) {
	l.plain.mu.Lock()
	defer l.plain.mu.Unlock()
	if way := l.plain.way; way != nil {
		select {
		case <-way.process.Done():
			way.end()
		default:
			way.files++
			way.unidle()
			return way, nil
		}
	}
	secret := make([]byte, plaindata.SecretSize)
	_, _ = rand.Read(secret) // never fails
	process, err := l.conn.Start(ctx, command.Cmd{Name: r.program, Args: []string{"sftp-data", "--base", r.base}})
	if err != nil {
		return nil, fmt.Errorf("PLAIN_DATA: %w", err)
	}
	limited, cancel := context.WithTimeoutCause(ctx, r.limits.answer, fault.Errorf(fault.Unavailable, "the other end says nothing for %v", r.limits.answer))
	defer cancel()
	port, err := handOverSecret(limited, process, secret)
	if err != nil {
		process.Stdin.Close()
		return nil, fmt.Errorf("PLAIN_DATA: %w", err)
	}
	way := &plainWay{link: l, process: process, stop: make(chan struct{}), files: 1,
		client: plaindata.NewClient(net.JoinHostPort(r.host.Hostname(), port), secret)}
	l.plain.way = way
	go way.beat()
	return way, nil
}

// handOverSecret gives the other end the secret, over the encrypted connection, and takes the port.
func handOverSecret(ctx context.Context, process *remote.Process, secret []byte) (port string, err error) {
	ctx, done := waiting.On(ctx, "the other end of PLAIN_DATA")
	defer done()
	said := make(chan string, 1)
	go func() { // ends with the process
		_, _ = io.WriteString(process.Stdin, hex.EncodeToString(secret)+"\n")
		out := bufio.NewReader(process.Stdout)
		line, _ := out.ReadString('\n')
		said <- strings.TrimSpace(line)
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case port = <-said:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
		return port, nil
	}
	if port != "" {
		return "", fault.Errorf(fault.Unsupported, "the other end says %q", port)
	}
	if err := process.Wait(ctx); err != nil {
		return "", err
	}
	return "", fault.Errorf(fault.Unsupported, "the other end says nothing")
}

// beat shows the other end that we live, and ends the client with it.
func (w *plainWay) beat() {
	defer w.client.Close()
	ticker := time.NewTicker(plaindata.Lease / 6)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if _, err := w.process.Stdin.Write([]byte(".")); err != nil {
				return
			}
		case <-w.stop:
			w.process.Stdin.Close()
			return
		case <-w.process.Done():
			return
		}
	}
}

// end lets the other end go. The link's mutex is held, as for unidle.
func (w *plainWay) end() {
	if !w.ended {
		w.ended = true
		close(w.stop)
	}
	w.unidle()
	if w.link.plain.way == w {
		w.link.plain.way = nil
	}
}

func (w *plainWay) unidle() {
	if w.idle != nil {
		w.idle.Stop()
		w.idle = nil
	}
}

// leave counts a file off; after the last the way is closed when nobody comes for a while.
func (w *plainWay) leave() {
	mu := &w.link.plain.mu
	mu.Lock()
	defer mu.Unlock()
	w.files--
	if w.files > 0 || w.ended {
		return
	}
	w.idle = time.AfterFunc(plainIdle, func() {
		mu.Lock()
		defer mu.Unlock()
		if w.files == 0 {
			w.end()
		}
	})
}

// broken gives the whole connection up when the unencrypted way failed: what it still carries out is ended with that.
func (l *link) broken(err error) error {
	var lost *plaindata.LostError
	if errors.As(err, &lost) && !fault.Is(err, fault.Permission) {
		l.conn.Lose(err)
		<-l.conn.Done()
	}
	return err
}

func (f *plainFile) close() {
	f.once.Do(func() {
		_ = f.way.client.CloseFile(f.handle)
		f.way.leave()
	})
}

func (f *plainFile) readAt(p []byte, offset, size int64) (n int, eof bool, err error) {
	if offset < 0 {
		return 0, false, fault.Errorf(fault.Invalid, "negative offset %d", offset)
	}
	if rest := max(0, size-offset); int64(len(p)) > rest {
		p, eof = p[:rest], true
	}
	n, err = f.way.client.ReadAt(f.handle, p, offset)
	if err != nil {
		return 0, false, f.way.link.broken(err)
	}
	if n < len(p) {
		return n, false, fault.Errorf(fault.Unavailable, "ends at %d of %d bytes", offset+int64(n), size)
	}
	return n, eof, nil
}

func (f *plainFile) writeAt(p []byte, offset int64) error {
	if offset < 0 {
		return fault.Errorf(fault.Invalid, "negative offset %d", offset)
	}
	return f.way.link.broken(f.way.client.WriteAt(f.handle, p, offset))
}

func (f *plainFile) punch(offset, length int64) error {
	return f.way.link.broken(f.way.client.Punch(f.handle, offset, length))
}

// nextData is that of repository.Extents for an object of this size.
func (f *plainFile) nextData(offset, size int64) (start, end int64, err error) {
	start, end, err = f.way.client.NextData(f.handle, offset)
	if err == io.EOF || err == nil && start >= size {
		return 0, 0, io.EOF
	}
	return start, min(end, size), f.way.link.broken(err)
}

// plainSource is a source that knows its holes: the other end of the unencrypted way tells.
type plainSource struct{ *source }

var _ repository.Extents = (*plainSource)(nil)

type extent struct {
	start, end int64
	eof        bool
}

// NextData implements repository.Extents.
func (s *plainSource) NextData(offset int64) (start, end int64, err error) {
	found := make(chan extent, 2)
	err = s.with(0, func(o *opened) error {
		return take(found, func() (int64, int64, error) { return o.plain.nextData(offset, s.size) })
	})
	return given(found, err)
}

// plainTarget is a target that knows its holes.
type plainTarget struct{ *target }

var _ repository.Extents = (*plainTarget)(nil)

// NextData implements repository.Extents.
func (t *plainTarget) NextData(offset int64) (start, end int64, err error) {
	found := make(chan extent, 1)
	r := t.repository
	err = r.on(context.Background(), t.link, r.limits.answer, func() error {
		return r.object(t.link, t.name, take(found, func() (int64, int64, error) { return t.plain.nextData(offset, t.size.Load()) }))
	})
	return given(found, err)
}

// take carries the end of the data past what would take io.EOF for that of a connection.
func take(found chan extent, next func() (int64, int64, error)) error {
	start, end, err := next()
	if err == nil || err == io.EOF {
		found <- extent{start, end, err == io.EOF}
		return nil
	}
	return err
}

func given(found chan extent, err error) (int64, int64, error) {
	if err != nil {
		return 0, 0, err
	}
	e := <-found
	if e.eof {
		return 0, 0, io.EOF
	}
	return e.start, e.end, nil
}
