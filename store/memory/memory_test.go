package memory_test

import (
	"context"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/internal/leaktest"
	"hayloft/store"
	"hayloft/store/memory"
	"hayloft/store/storetest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestConformance(t *testing.T) {
	first := memory.New()
	defer first.Close()
	storetest.Run(t, func(*testing.T) store.Store { return first.Client() })
}

func TestHistoryIsBounded(t *testing.T) {
	s := memory.New()
	defer s.Close()
	ctx := t.Context()
	for range 25_000 {
		if _, err := s.Txn(ctx, nil, []store.Op{store.Put("a", nil)}); err != nil {
			t.Fatal(err)
		}
	}
	events, err := s.Watch(ctx, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if batch, open := <-events; open {
		t.Errorf("a watch of forgotten history delivered %d events", len(batch))
	}
	recent, err := s.Watch(ctx, "", 25_000-10_000)
	if err != nil {
		t.Fatal(err)
	}
	if batch := <-recent; len(batch) != 10_000 {
		t.Errorf("%d of the last 10000 changes", len(batch))
	}
}

func TestDepose(t *testing.T) {
	s := memory.New()
	defer s.Close()
	if s.Depose("boss") {
		t.Error("somebody was deposed in an election that never was")
	}
	l, err := s.Campaign(context.Background(), "boss", "x")
	if err != nil {
		t.Fatal(err)
	}
	if !s.Depose("boss") {
		t.Error("nobody was deposed")
	}
	<-l.Lost()
	if _, err := s.Txn(t.Context(), []store.Cond{l.Fence()}, nil); !fault.Is(err, fault.Busy) {
		t.Errorf("the deposed leader's transaction: %v", err)
	}
}
