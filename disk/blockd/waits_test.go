package blockd

import (
	"context"
	"os"
	"testing"
	"time"

	"hayloft/internal/waiting"
)

// TestCallersLearnWhatACallWaitsFor: across the socket too.
func TestCallersLearnWhatACallWaitsFor(t *testing.T) {
	dir, err := os.MkdirTemp("", "hl")
	must(t, err)
	defer os.RemoveAll(dir)
	l, err := Listen(dir)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	next := make(chan struct{})
	s := &Server{Service: waiter{next: next}, Waiting: time.Millisecond}
	go func() { served <- s.Serve(ctx, l) }()
	c := NewClient(dir)
	defer func() {
		c.Close()
		cancel()
		must(t, <-served)
	}()
	asking, watch := waiting.New(t.Context())
	asking, done := waiting.On(asking, "disk 1")
	ended := make(chan error, 1)
	go func() { ended <- c.Export(asking, Export{Name: "1.1"}) }()
	const want = "disk 1: the data path's export: the lock of object data"
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		what, _ := watch.Longest()
		if what == want {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("%q, want %q", what, want)
		}
	}
	close(next)
	must(t, <-ended)
	if what, _ := watch.Longest(); what != "disk 1" {
		t.Errorf("after the call %q", what)
	}
	done()
}

// waiter is a Service whose exports wait for next.
type waiter struct {
	Service
	next chan struct{}
}

func (w waiter) Export(ctx context.Context, _ Export) error {
	_, done := waiting.On(ctx, "the lock of object data")
	defer done()
	<-w.next
	return nil
}
