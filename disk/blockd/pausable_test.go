package blockd

import (
	"context"
	"errors"
	"testing"

	"hayloft/disk/export"
)

// failing is a device whose flushes fail when their context ends.
type failing struct{ export.Device }

func (failing) Flush(ctx context.Context) error {
	<-ctx.Done()
	return errors.New("cut off")
}

// TestEndingIsNoError: a request that fails because the process ends gets no answer, until its file is taken away.
func TestEndingIsNoError(t *testing.T) {
	p := newPausable(failing{})
	asked, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Flush(asked) }()
	p.end()
	p.pause() // waits for the request
	select {
	case err := <-done:
		t.Fatal("answered: ", err)
	default:
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("the flush did nothing and says nothing")
	}
}
