package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

func dial(t testing.TB, path string, d Dialer) *Client {
	t.Helper()
	d.Log = quiet()
	c, err := d.Dial(t.Context(), "unix", path, "disk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func named() Config { return Config{Names: []string{"disk"}, Grace: 100 * time.Millisecond} }

func TestClient(t *testing.T) {
	m := newMemory(40 << 20)
	c := dial(t, serve(t, quickMemory{memory: m, missFrom: 20 << 20}, named()).path, Dialer{})
	want := pattern(40<<20, 1)
	if n, err := c.WriteAt(want, 0); n != len(want) || err != nil { // more than one request holds
		t.Fatal(n, err)
	}
	got := make([]byte, len(want)+10)
	if n, err := c.ReadAt(got, 0); n != len(want) || err != io.EOF || !bytes.Equal(got[:n], want) {
		t.Fatal(n, err)
	}
	if n, err := c.ReadAt(got, 40<<20); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
	if n, err := c.ReadAt(got[:4], 40<<20-4); n != 4 || err != nil {
		t.Error(n, err)
	}
	if _, err := c.ReadAt(got, -1); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := c.WriteAt(got[:10], 40<<20-1); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if err := c.Discard(100, 1000); err != nil {
		t.Error(err)
	}
	if err := c.WriteZeroes(t.Context(), 100, 1000, true); err != nil {
		t.Error(err)
	}
	if err := c.Trim(t.Context(), 100, 1000); err != nil {
		t.Error(err)
	}
	if err := c.Sync(); err != nil {
		t.Error(err)
	}
	_, zeroed, flushes := m.seen()
	if want := []export.ZeroFlags{{}, {NoHole: true}, {Trim: true}}; !slices.Equal(zeroed, want) || flushes != 1 {
		t.Error(zeroed, flushes)
	}
	var fua atomic.Bool
	m.when(func(_ context.Context, op string, _ int64) error {
		fua.CompareAndSwap(false, op == "write-fua")
		return nil
	})
	if err := c.Write(t.Context(), want[:10], 0, true); err != nil || !fua.Load() {
		t.Error(err)
	}
	if err := c.Truncate(40 << 20); err != nil {
		t.Error(err)
	}
	if err := c.Truncate(41 << 20); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}

func TestClientReadOnly(t *testing.T) {
	m := newMemory(100)
	m.readOnly = true
	c := dial(t, serve(t, m, named()).path, Dialer{})
	for _, err := range []error{c.Write(t.Context(), make([]byte, 10), 0, false), c.Discard(0, 10), c.Trim(t.Context(), 0, 10)} {
		if !fault.Is(err, fault.Permission) {
			t.Error(err)
		}
	}
}

func TestClientErrors(t *testing.T) {
	m := newMemory(4096)
	c := dial(t, serve(t, m, named()).path, Dialer{})
	for _, class := range []fault.Class{fault.Permission, fault.OutOfSpace, fault.Invalid, fault.Unsupported, fault.Internal} {
		m.when(func(context.Context, string, int64) error { return fault.Errorf(class, "the reason") })
		for _, err := range []error{c.Read(t.Context(), make([]byte, 10), 0), c.Write(t.Context(), make([]byte, 10), 0, false), c.Sync()} {
			if !fault.Is(err, class) || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), `"disk"`) {
				t.Errorf("%v: %v", class, err)
			}
		}
	}
}

func TestNextData(t *testing.T) {
	m := newMemory(100 << 10)
	m.extents = []export.Extent{{Offset: 0, Length: 4096, Hole: true, Zero: true}, {Offset: 4096, Length: 4096}, {Offset: 8192, Length: 4096, Hole: true},
		{Offset: 12288, Length: 4096, Zero: true}, {Offset: 16384, Length: 4096}, {Offset: 20480, Length: 100<<10 - 20480, Hole: true, Zero: true}}
	c := dial(t, serve(t, m, named()).path, Dialer{})
	for _, tt := range []struct{ at, start, end int64 }{{0, 4096, 12288}, {5000, 5000, 12288}, {12288, 16384, 20480}, {20480, 0, 0}, {100 << 10, 0, 0}} {
		start, end, err := c.NextData(tt.at)
		if tt.end == 0 {
			if err != io.EOF {
				t.Errorf("%d: %d %d %v", tt.at, start, end, err)
			}
		} else if start != tt.start || end != tt.end || err != nil {
			t.Errorf("%d: %d %d %v", tt.at, start, end, err)
		}
	}
}

// TestManyCallers: requests of many goroutines share the connection, with checks by the race detector.
func TestManyCallers(t *testing.T) {
	c := dial(t, serve(t, quickMemory{memory: newMemory(1 << 20), missFrom: 1 << 19}, named()).path, Dialer{})
	var callers sync.WaitGroup
	for i := range 16 {
		callers.Go(func() {
			at := int64(i) << 16
			got := make([]byte, 1<<16)
			for round := range 20 {
				want := pattern(1<<16-round, i*100+round)
				if err := c.Write(t.Context(), want, at, round%5 == 0); err != nil {
					t.Error(err)
				}
				if err := c.Read(t.Context(), got[:len(want)], at); err != nil || !bytes.Equal(got[:len(want)], want) {
					t.Error("other bytes", err)
				}
			}
		})
	}
	callers.Wait()
}

// TestContextEndsWait: for the reply, and while a message is under way; the client goes on.
func TestContextEndsWait(t *testing.T) {
	m := newMemory(1 << 20)
	begun := make(chan struct{}, 10)
	m.when(func(ctx context.Context, op string, offset int64) error {
		if offset == 1<<19 {
			begun <- struct{}{}
			<-ctx.Done()
		}
		return ctx.Err()
	})
	c := dial(t, serve(t, m, named()).path, Dialer{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	if err := c.Read(ctx, make([]byte, 10), 1<<19); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := c.Read(t.Context(), make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// TestGivenUpInTheMiddle: a request is given up while its message is under way in either direction; its buffer is the
// caller's again, and the next connection serves.
func TestGivenUpInTheMiddle(t *testing.T) {
	good := func(r *raw) {
		head := make([]byte, requestSize)
		if _, err := io.ReadFull(r, head); err != nil {
			return
		}
		q, _ := parseRequest(head)
		r.Write(bytesOf(uint32(magicSimple), uint32(0), q.cookie, "abcdefghij"))
		io.Copy(io.Discard, r)
	}
	for name, tt := range map[string]struct {
		server func(begun chan<- struct{}) func(*raw)
		ask    func(context.Context, *Client) error
	}{
		"receiving": {func(begun chan<- struct{}) func(*raw) {
			return func(r *raw) {
				io.ReadFull(r, make([]byte, requestSize))
				r.Write(bytesOf(uint32(magicSimple), uint32(0), uint64(1), "half of it"))
				close(begun)
				io.Copy(io.Discard, r)
			}
		}, func(ctx context.Context, c *Client) error { return c.Read(ctx, make([]byte, 1<<20), 0) }},
		"sending": {func(begun chan<- struct{}) func(*raw) {
			return func(r *raw) {
				io.ReadFull(r, make([]byte, requestSize))
				close(begun)
				for { // without reading, until the client goes away
					if _, err := r.Write(nil); err != nil {
						return
					}
					p := [1]unix.PollFd{{Events: unix.POLLRDHUP}}
					sys, _ := r.Conn.(*net.UnixConn).SyscallConn()
					sys.Control(func(fd uintptr) { p[0].Fd = int32(fd); unix.Poll(p[:], 1000) })
					if p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0 {
						return
					}
				}
			}
		}, func(ctx context.Context, c *Client) error { return c.Write(ctx, make([]byte, 16<<20), 0, false) }},
	} {
		t.Run(name, func(t *testing.T) {
			begun := make(chan struct{})
			c := dial(t, fake(t, 16<<20, flagHasFlags, false, tt.server(begun), good), Dialer{Patience: longest})
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-begun
				wait(t, func() bool {
					c.mu.Lock()
					defer c.mu.Unlock()
					return c.calls[1] != nil && c.calls[1].busy
				})
				cancel()
			}()
			if err := tt.ask(ctx, c); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			p := make([]byte, 10)
			if err := c.Read(t.Context(), p, 0); err != nil || string(p) != "abcdefghij" {
				t.Errorf("%q %v", p, err)
			}
		})
	}
}

// fake is a server by hand: each connection goes to the next function, with the handshake done.
func fake(t *testing.T, size uint64, flags uint16, structured bool, each ...func(r *raw)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fake")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, f := range each {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fakeHandshake(conn, size, flags, structured)
			f(&raw{t, conn})
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return path
}

func fakeHandshake(conn net.Conn, size uint64, flags uint16, structured bool) {
	reply := func(option, kind uint32, data ...any) {
		p := bytesOf(data...)
		conn.Write(bytesOf(uint64(magicOptionReply), option, kind, uint32(len(p)), p))
	}
	conn.Write(bytesOf(uint64(magicServer), uint64(magicOption), uint16(3)))
	io.ReadFull(conn, make([]byte, 4))
	head := make([]byte, 16)
	for {
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		option := uint32(head[11])
		io.ReadFull(conn, make([]byte, head[15]))
		switch {
		case option == optStructuredReply && structured:
			reply(option, repAck)
		case option == optSetMeta:
			reply(option, repMeta, uint32(9), contextAllocation)
			reply(option, repAck)
		case option == optGo:
			reply(option, repInfo, uint16(infoExport), size, flags)
			reply(option, repAck)
			return
		default:
			reply(option, repUnsupported, "no")
		}
	}
}

// TestPlainServer: one without structured replies, contexts, flush, FUA and zeroes.
func TestPlainServer(t *testing.T) {
	content := pattern(1000, 5)
	path := fake(t, 1000, flagHasFlags, false, func(r *raw) {
		for {
			p := make([]byte, requestSize)
			if _, err := io.ReadFull(r, p); err != nil {
				return
			}
			q, _ := parseRequest(p)
			switch q.command {
			case cmdRead:
				r.Write(bytesOf(uint32(magicSimple), uint32(0), q.cookie, content[q.offset:][:q.length]))
			case cmdWrite:
				io.ReadFull(r, content[q.offset:][:q.length])
				r.Write(bytesOf(uint32(magicSimple), uint32(0), q.cookie))
			default:
				t.Errorf("command %d was not offered", q.command)
				return
			}
		}
	})
	c := dial(t, path, Dialer{})
	got := make([]byte, 1000)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, pattern(1000, 5)) {
		t.Error(err)
	}
	if err := c.Write(t.Context(), got, 0, true); err != nil {
		t.Error(err)
	}
	if err := c.Trim(t.Context(), 0, 10); err != nil {
		t.Error(err)
	}
	if err := c.Discard(0, 1000); err != nil {
		t.Error(err)
	}
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, make([]byte, 1000)) {
		t.Error("not zeroed", err)
	}
	if start, end, err := c.NextData(10); start != 10 || end != 1000 || err != nil {
		t.Error(start, end, err)
	}
}

// TestLyingServer: a broken reply is Corrupt for those who wait, and the next connection serves.
func TestLyingServer(t *testing.T) {
	data := func(flags uint16, offset uint64, p string) []byte {
		return bytesOf(uint32(magicStructured), flags, uint16(replyData), uint64(1), uint32(8+len(p)), offset, p)
	}
	for name, lie := range map[string][]byte{
		"magic":        make([]byte, 100),
		"cookie":       bytesOf(uint32(magicSimple), uint32(0), uint64(77)),
		"simple":       bytesOf(uint32(magicSimple), uint32(0), uint64(1)),
		"before":       data(1, 0, "xx"),
		"beyond":       data(1, 18, "xyz"),
		"too much":     bytesOf(data(0, 10, "0123456789"), data(1, 10, "0")),
		"too little":   data(1, 10, "012345678"),
		"status":       bytesOf(uint32(magicStructured), uint16(1), uint16(replyStatus), uint64(1), uint32(12), uint32(9), uint64(5)),
		"unknown type": bytesOf(uint32(magicStructured), uint16(1), uint16(77), uint64(1), uint32(0)),
		"error":        bytesOf(uint32(magicStructured), uint16(1), uint16(replyError), uint64(1), uint32(6), uint32(5), uint16(9)),
	} {
		t.Run(name, func(t *testing.T) {
			answer := func(p []byte) func(*raw) {
				return func(r *raw) {
					if _, err := io.ReadFull(r, make([]byte, requestSize)); err == nil {
						r.Write(p)
						io.Copy(io.Discard, r)
					}
				}
			}
			good := bytesOf(uint32(magicStructured), uint16(1), uint16(replyData), uint64(2), uint32(18), uint64(10), "abcdefghij")
			c := dial(t, fake(t, 100, flagHasFlags, true, answer(lie), answer(good)), Dialer{Patience: longest})
			p := make([]byte, 10)
			if err := c.Read(t.Context(), p, 10); !fault.Is(err, fault.Corrupt) {
				t.Fatal(err)
			}
			if err := c.Read(t.Context(), p, 10); err != nil || string(p) != "abcdefghij" {
				t.Errorf("%s %v", p, err)
			}
		})
	}
}

func TestDialErrors(t *testing.T) {
	s := serve(t, newMemory(1), named())
	plain := filepath.Join(t.TempDir(), "plain")
	listener, err := net.Listen("unix", plain)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("220 mail.example.org ESMTP"))
			conn.Close()
		}
	}()
	for _, tt := range []struct {
		path, name string
		want       fault.Class
	}{{s.path, "nothing", fault.NotFound}, {s.path + "x", "disk", fault.Unavailable}, {plain, "disk", fault.Corrupt}, {s.path, strings.Repeat("x", 5000), fault.Invalid}} {
		if _, err := Dial(t.Context(), "unix", tt.path, tt.name); !fault.Is(err, tt.want) {
			t.Errorf("%v, want %v", err, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, "unix", s.path, "disk"); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

// TestReconnect: requests under way and new ones outlive a server, writes are there afterwards.
func TestReconnect(t *testing.T) {
	m := newMemory(1 << 20)
	path := filepath.Join(t.TempDir(), "s")
	s := serveAt(t, path, m, named())
	c := dial(t, path, Dialer{Patience: longest})
	stopped := make(chan struct{})
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for n := byte(1); ; n++ {
				p := bytes.Repeat([]byte{n}, 4096)
				got := make([]byte, 4096)
				at := int64(i) << 18
				if err := errors.Join(c.Write(t.Context(), p, at, false), c.Read(t.Context(), got, at)); err != nil || !bytes.Equal(p, got) {
					t.Errorf("round %d: %v", n, err)
					return
				}
				select {
				case <-stopped:
					return
				default:
				}
			}
		})
	}
	for range 5 {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		os.Remove(path)
		s = serveAt(t, path, m, named())
		if err := c.Read(t.Context(), make([]byte, 10), 0); err != nil {
			t.Error(err)
		}
	}
	close(stopped)
	writers.Wait()
}

// TestPatience: without a server, requests fail in time, and later ones succeed when it is back.
func TestPatience(t *testing.T) {
	m := newMemory(1 << 20)
	path := filepath.Join(t.TempDir(), "s")
	s := serveAt(t, path, m, named())
	c := dial(t, path, Dialer{Patience: 200 * time.Millisecond})
	s.stop()
	begun := time.Now()
	err := c.Read(t.Context(), make([]byte, 10), 0)
	if took := time.Since(begun); !fault.Is(err, fault.Unavailable) || took < 150*time.Millisecond || took > longest {
		t.Errorf("%v after %v", err, took)
	}
	os.Remove(path)
	serveAt(t, path, m, named())
	wait(t, func() bool { return c.Read(t.Context(), make([]byte, 10), 0) == nil })
	s.stop()
}

// TestOtherSize: a server that comes back with something else is not believed.
func TestOtherSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := serveAt(t, path, newMemory(100), named())
	c := dial(t, path, Dialer{Patience: 3 * time.Second})
	s.stop()
	os.Remove(path)
	serveAt(t, path, newMemory(200), named())
	if err := c.Read(t.Context(), make([]byte, 10), 0); !fault.Is(err, fault.Corrupt) {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	m := newMemory(100)
	begun := make(chan struct{})
	m.when(func(ctx context.Context, _ string, _ int64) error { close(begun); <-ctx.Done(); return ctx.Err() })
	c := dial(t, serve(t, m, named()).path, Dialer{})
	done := make(chan error)
	go func() { done <- c.Read(t.Context(), make([]byte, 10), 0) }()
	<-begun
	c.Close()
	if err := <-done; !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	if err := c.Read(t.Context(), make([]byte, 10), 0); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestTCP: both sides work over TCP as well.
func TestTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(Config{Log: quiet(), Grace: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, listener, newMemory(1<<20)) }()
	c, err := Dial(t.Context(), "tcp", listener.Addr().String(), "")
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(1<<20, 1)
	got := make([]byte, 1<<20)
	if err := errors.Join(c.Write(t.Context(), want, 0, true), c.Read(t.Context(), got, 0)); err != nil || !bytes.Equal(got, want) {
		t.Error(fmt.Sprint(err))
	}
	c.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
