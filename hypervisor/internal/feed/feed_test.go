package feed

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestFeedMergesAndKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New()
		f.Add(1)
		f.Add(2)
		f.Add(1)
		ctx, cancel := context.WithCancel(t.Context())
		events := f.Read(ctx)
		if a, b := <-events, <-events; a != 1 || b != 2 {
			t.Errorf("got %d, %d; want 1, 2", a, b)
		}
		synctest.Wait()
		select {
		case id := <-events:
			t.Errorf("repeat of %d was not merged", id)
		default:
		}
		f.Add(1)
		if id := <-events; id != 1 {
			t.Errorf("got %d, want 1 again after it was read", id)
		}
		cancel()
		if _, open := <-events; open {
			t.Error("channel still open after the context ended")
		}
	})
}
