package ranges

import (
	"context"
	"testing"
)

func TestRangesAreOrdered(t *testing.T) {
	var r Queue
	a, err := r.Lock(t.Context(), 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	if r.TryLock(5, 15) != nil {
		t.Fatal("two hold byte 5")
	}
	other := r.TryLock(10, 20)
	if other == nil {
		t.Fatal("byte 10 is free")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, start := range []int64{0, 20} {
		if _, err := r.Lock(ctx, start, 30); err == nil {
			t.Fatal("locked by one who had given up")
		}
	}
	got := make(chan *Hold)
	go func() {
		h, _ := r.Lock(context.Background(), 0, 30)
		got <- h
	}()
	a.Unlock()
	other.Unlock()
	h := <-got
	h.Unlock()
	if len(r.all) != 0 {
		t.Fatalf("%d are left", len(r.all))
	}
}
