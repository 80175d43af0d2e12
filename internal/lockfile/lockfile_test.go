package lockfile

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"hayloft/cloud/fault"
)

func open(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestTake(t *testing.T) {
	dir := t.TempDir()
	first, second := open(t, dir), open(t, dir)
	if err := Take(t.Context(), first, 0); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []time.Duration{0, 20 * time.Millisecond} {
		if err := Take(t.Context(), second, limit); !fault.Is(err, fault.Busy) {
			t.Errorf("limit %v: %v", limit, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Take(ctx, second, Forever); !fault.Is(err, fault.Busy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() { done <- Take(t.Context(), second, Forever) }()
	select {
	case err := <-done:
		t.Fatal("two have it: ", err)
	case <-time.After(20 * time.Millisecond):
	}
	first.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	second.Close()
	if err := Take(t.Context(), second, 0); err == nil || fault.Is(err, fault.Busy) {
		t.Errorf("a closed one: %v", err)
	}
}
