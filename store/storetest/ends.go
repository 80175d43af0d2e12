package storetest

import (
	"context"
	"errors"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// calls are all methods that take a context.
func calls(s store.Store, c string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Get":   func(ctx context.Context) error { _, err := s.Get(ctx, c+"a"); return err },
		"List":  func(ctx context.Context) error { _, _, err := s.List(ctx, c); return err },
		"Watch": func(ctx context.Context) error { _, err := s.Watch(ctx, c, 0); return err },
		"Txn": func(ctx context.Context) error {
			_, err := s.Txn(ctx, nil, []store.Op{store.Put(c+"a", nil)})
			return err
		},
		"Campaign": func(ctx context.Context) error { _, err := s.Campaign(ctx, "ends", "x"); return err },
	}
}

func contexts(b *bench) {
	s, c := b.client(), corner()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, call := range calls(s, c) {
		if err := call(ended); !errors.Is(err, context.Canceled) {
			b.Errorf("%s with an ended context: %v", name, err)
		}
	}
	if recs, _ := b.list(s, c); len(recs) != 0 {
		b.Errorf("a call with an ended context wrote %+v", recs)
	}
}

func closing(b *bench) {
	s, c := b.open(b.T), corner()
	b.put(s, c+"a", "kept")
	_, revision := b.list(s, c)
	watching := b.watch(s, c, revision)
	leading := b.campaign(s, electionName(), "x")
	for range 2 {
		if err := s.Close(); err != nil {
			b.Fatalf("Close: %v", err)
		}
	}
	if batch := wait(b, "end of the watch", watching); batch != nil {
		b.Errorf("events %+v", batch)
	}
	wait(b, "end of the leadership", leading.Lost())
	for name, call := range calls(s, c) {
		b.class(name+" after Close", call(b.ctx()), fault.Unavailable)
	}
	if rec := b.get(b.client(), c+"a"); string(rec.Value) != "kept" {
		b.Errorf("another client reads %q after Close", rec.Value)
	}
}
