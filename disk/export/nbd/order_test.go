package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

// TestOutOfOrder: what waits delays nothing else, neither hits nor misses nor changes.
func TestOutOfOrder(t *testing.T) {
	m := newMemory(1 << 20)
	released := make(chan struct{})
	m.when(func(_ context.Context, op string, offset int64) error {
		if offset == 1<<19 {
			<-released
		}
		return nil
	})
	r := enter(t, serve(t, quickMemory{memory: m, missFrom: 1 << 19}, Config{}).path, true)
	r.request(cmdRead, 0, 1, 1<<19, 4096)
	r.request(cmdWrite, 0, 2, 1<<19, 512<<10, make([]byte, 512<<10))
	r.request(cmdRead, 0, 3, 0, 4096)
	r.request(cmdWrite, 0, 4, 0, 4096, make([]byte, 4096))
	r.request(cmdRead, 0, 5, 1<<19+4096, 4096)
	r.request(cmdFlush, 0, 6, 0, 0)
	seen := map[uint64]bool{}
	for range 4 {
		seen[r.message().cookie] = true
	}
	if !seen[3] || !seen[4] || !seen[5] || !seen[6] {
		t.Fatalf("answered first: %v", seen)
	}
	close(released)
	for range 2 {
		seen[r.message().cookie] = true
	}
	if !seen[1] || !seen[2] {
		t.Errorf("answered: %v", seen)
	}
}

// TestBudget: a connection beyond the budget reads no more requests, and another still has its one.
func TestBudget(t *testing.T) {
	m := newMemory(1 << 20)
	var waiting atomic.Int32
	released := make(chan struct{})
	m.when(func(context.Context, string, int64) error {
		waiting.Add(1)
		<-released
		return nil
	})
	b := newBudget(3*classes[0], 100)
	s := serve(t, quickMemory{memory: m, missFrom: 1 << 19}, Config{Budget: b})
	first, second := enter(t, s.path, true), enter(t, s.path, true)
	first.request(cmdRead, 0, 99, 0, 100) // a hit is answered although its reader waits afterwards
	for i := range uint64(10) {
		first.request(cmdRead, 0, i, 1<<19, 4096)
	}
	first.content(99, 0, 100)
	wait(t, func() bool { return waiting.Load() == 3 })
	second.request(cmdRead, 0, 50, 1<<19, 4096)
	second.request(cmdRead, 0, 51, 1<<19, 4096)
	wait(t, func() bool { return waiting.Load() == 4 })
	close(released)
	for range 10 {
		if got := first.message(); got.err != 0 {
			t.Errorf("%+v", got)
		}
	}
	for range 2 {
		second.message()
	}
	wait(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.bytes == 3*classes[0] && b.requests == 100
	})
}

// longest is how long tests wait for what must come, on a machine with much else to do.
const longest = 2 * time.Minute

func wait(t testing.TB, is func() bool) {
	t.Helper()
	for end := time.Now().Add(longest); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to be")
		}
	}
}

// TestStop: a server that stops answers what it can within the grace, and ends what it cannot.
func TestStop(t *testing.T) {
	t.Run("idle, negotiating and busy", func(t *testing.T) {
		m := newMemory(1 << 20)
		begun, released := make(chan struct{}), make(chan struct{})
		m.when(func(context.Context, string, int64) error { close(begun); <-released; return nil })
		s := serve(t, m, Config{Grace: longest})
		idle, busy, early := enter(t, s.path, true), enter(t, s.path, true), dialRaw(t, s.path)
		early.hello(3)
		busy.request(cmdRead, 0, 1, 0, 10)
		<-begun
		done := make(chan error)
		go func() { done <- s.stop() }()
		idle.ends()
		early.ends()
		close(released)
		if got := busy.message(); got.err != 0 || got.cookie != 1 {
			t.Errorf("%+v", got)
		}
		busy.ends()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := net.Dial("unix", s.path); err == nil {
			t.Error("it still listens")
		}
	})
	t.Run("hanging", func(t *testing.T) {
		m := newMemory(1 << 20)
		begun := make(chan struct{})
		m.when(func(ctx context.Context, _ string, _ int64) error { close(begun); <-ctx.Done(); return ctx.Err() })
		s := serve(t, m, Config{Grace: time.Millisecond})
		r := enter(t, s.path, true)
		r.request(cmdRead, 0, 1, 0, 10)
		<-begun
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		r.ends() // without an answer: the client asks again elsewhere
	})
	t.Run("a client that reads nothing", func(t *testing.T) {
		s := serve(t, quickMemory{memory: newMemory(1 << 20), missFrom: 1 << 20}, Config{Grace: time.Millisecond})
		r := enter(t, s.path, true)
		for i := range uint64(64) {
			r.request(cmdRead, 0, i, 0, 1<<20)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestClientGone: requests of a client that left are ended.
func TestClientGone(t *testing.T) {
	m := newMemory(1 << 20)
	begun := make(chan struct{})
	ended := make(chan error, 1)
	m.when(func(ctx context.Context, _ string, _ int64) error {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	})
	s := serve(t, m, Config{})
	r := enter(t, s.path, true)
	r.request(cmdRead, 0, 1, 0, 10)
	<-begun
	r.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wait(t, func() bool { return s.Status().Connections == 0 })
}

// TestListenerFails: Serve says why it ended when nobody ended it.
func TestListenerFails(t *testing.T) {
	s, err := NewServer(Config{Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if err := s.Serve(t.Context(), listener, newMemory(1)); !errors.Is(err, net.ErrClosed) || fault.Is(err, fault.Busy) {
		t.Error(err)
	}
}

// filed is memory whose long reads come from a descriptor.
type filed struct {
	quickMemory
	fd uintptr
}

func (f filed) TryFile(offset int64, _ int) (uintptr, int64, bool) { return f.fd, offset, true }

// TestSlowClient: replies that fill the socket wait for their reader, and stay whole.
func TestSlowClient(t *testing.T) {
	const size, requests = 4 << 20, 16
	content := pattern(size, 1)
	m := newMemory(size)
	copy(m.data, content)
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open("/dev/null") // ends at once: nothing comes by sendfile
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC) // sendfile does not like it
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll)
	all := quickMemory{memory: m, missFrom: size}
	for name, device := range map[string]export.Device{"copied": all, "misses": m, "sendfile": filed{all, f.Fd()}, "empty sendfile": filed{all, null.Fd()},
		"no sendfile": filed{all, uintptr(epoll)}} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, device, Config{})
			for _, structured := range []bool{true, false} {
				r := enter(t, s.path, structured)
				for i := range uint64(requests) {
					r.request(cmdRead, 0, i, i<<10, 1<<20)
				}
				time.Sleep(5 * patience) // so that the server waits by the poller
				for left := requests << 20; left > 0; {
					if !structured {
						left -= 1 << 20
						got := r.message()
						if p := r.read(1 << 20); got.err != 0 || !bytes.Equal(p, content[got.cookie<<10:][:1<<20]) {
							t.Fatalf("%+v: other bytes", got)
						}
						continue
					}
					got := r.message()
					if got.kind != replyData || !bytes.Equal(got.data[8:], content[binary.BigEndian.Uint64(got.data):][:len(got.data)-8]) {
						t.Fatalf("kind %d, error %d: other bytes", got.kind, got.err)
					}
					left -= len(got.data) - 8
				}
			}
		})
	}
}
