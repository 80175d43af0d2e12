package nbd

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hayloft/cloud/fault"
)

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
	c := dial(t, path, Dialer{Patience: time.Second})
	s.stop()
	os.Remove(path)
	serveAt(t, path, newMemory(200), named())
	wait(t, func() bool { // it may run out of patience before it has met the other server
		err := c.Read(t.Context(), make([]byte, 10), 0)
		if err == nil {
			t.Fatal("read from another export")
		}
		return fault.Is(err, fault.Corrupt)
	})
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
