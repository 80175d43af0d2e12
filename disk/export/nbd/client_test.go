package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
