package nbd

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
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

func wait(t testing.TB, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
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
		s := serve(t, m, Config{Grace: 10 * time.Second})
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
