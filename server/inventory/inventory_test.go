package inventory

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"hayloft/cloud"
	"hayloft/store"
	"hayloft/store/memory"
)

// TestDeletionsBetweenWatches: what was deleted while nobody watched is told as deleted, when everything is read again.
func TestDeletionsBetweenWatches(t *testing.T) {
	st := memory.New()
	defer st.Close()
	inv, err := Open(t.Context(), st, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	write := func(ops ...store.Op) int64 {
		t.Helper()
		revision, err := st.Txn(t.Context(), nil, ops)
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	image := func(id int) store.Op {
		t.Helper()
		op, err := inv.Images.PutOp(id, cloud.Image{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		return op
	}
	wish, err := PutPrefetch(cloud.Prefetch{ImageID: 1, HostID: 5})
	if err != nil {
		t.Fatal(err)
	}
	write(image(1), image(2), wish)
	if err := inv.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	sub := inv.Subscribe(nil)
	defer sub.Close()
	write(inv.Images.DelOp(1), store.Del(wish.Key), image(3))
	last := write(image(4))
	if err := st.Compact(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = inv.Run(ctx) })
	defer running.Wait()
	defer cancel()
	if err := inv.WaitFor(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	told := map[Change]bool{}
	for _, c := range sub.Take() {
		told[c] = true
	}
	for _, c := range []Change{{Kind: cloud.KindImage, ID: 1, Deleted: true}, {Kind: cloud.KindPrefetch, ID: 5, Deleted: true},
		{Kind: cloud.KindImage, ID: 2}, {Kind: cloud.KindImage, ID: 3}, {Kind: cloud.KindImage, ID: 4}} {
		if !told[c] {
			t.Errorf("nothing was told of %+v", c)
		}
	}
	if told[Change{Kind: cloud.KindImage, ID: 2, Deleted: true}] {
		t.Error("what is there was told as deleted")
	}
}
