// Package storetest is the conformance suite of store drivers: what it asserts is what callers of
// store.Store may rely on.
package storetest

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// patience bounds every wait for something that must happen; only a failing test waits that long.
const patience = 2 * time.Minute

// Compactor is what the suite needs of a driver to see watches close when history is forgotten.
type Compactor interface {
	Compact(ctx context.Context, revision int64) error
}

// Run tests a driver. open returns a new client, closed by nobody else than the suite, of one backend
// that all calls share.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*bench)
	}{
		{"Records", records},
		{"ValuesAreCopies", valuesAreCopies},
		{"ListOrder", listOrder},
		{"Revisions", revisions},
		{"Conditions", conditions},
		{"AllOrNothing", allOrNothing},
		{"Counter", counter},
		{"PairsStayEqual", pairsStayEqual},
		{"Limits", limits},
		{"WatchChanges", watchChanges},
		{"WatchPrefix", watchPrefix},
		{"WatchWithoutGap", watchWithoutGap},
		{"WatchEnds", watchEnds},
		{"ManyWatches", manyWatches},
		{"WatchCompacted", watchCompacted},
		{"ElectionOrder", electionOrder},
		{"ElectionNames", electionNames},
		{"ElectionCancelled", electionCancelled},
		{"ElectionClose", electionClose},
		{"ElectionFence", electionFence},
		{"ElectionContest", electionContest},
		{"Contexts", contexts},
		{"Close", closing},
		{"Model", model},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(&bench{T: t, open: open}) })
	}
}

// bench is one test with its corner of the store.
type bench struct {
	*testing.T
	open func(t *testing.T) store.Store
}

var corners atomic.Int64

// corner is a fresh prefix, so that tests see only their own keys.
func corner() string { return fmt.Sprintf("t%04d/", corners.Add(1)) }

func (b *bench) client() store.Store {
	b.Helper()
	s := b.open(b.T)
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Errorf("Close: %v", err)
		}
	})
	return s
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b.Cleanup(cancel)
	return ctx
}

func (b *bench) put(s store.Store, key, value string) int64 {
	b.Helper()
	return b.txn(s, nil, store.Put(key, []byte(value)))
}

func (b *bench) txn(s store.Store, conds []store.Cond, ops ...store.Op) int64 {
	b.Helper()
	revision, err := s.Txn(b.ctx(), conds, ops)
	if err != nil {
		b.Fatalf("Txn(%v): %v", conds, err)
	}
	return revision
}

func (b *bench) get(s store.Store, key string) store.Record {
	b.Helper()
	rec, err := s.Get(b.ctx(), key)
	if err != nil {
		b.Fatalf("Get(%q): %v", key, err)
	}
	return rec
}

func (b *bench) list(s store.Store, prefix string) ([]store.Record, int64) {
	b.Helper()
	recs, revision, err := s.List(b.ctx(), prefix)
	if err != nil {
		b.Fatalf("List(%q): %v", prefix, err)
	}
	return recs, revision
}

func (b *bench) class(what string, err error, want fault.Class) {
	b.Helper()
	if !fault.Is(err, want) {
		b.Errorf("%s: error %v (%v), want class %v", what, err, fault.ClassOf(err), want)
	}
}

// wait fails the test when the channel is not closed or sent to in time.
func wait[T any](b *bench, what string, c <-chan T) T {
	b.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		b.Fatalf("%s: nothing within %v", what, patience)
		panic("unreachable")
	}
}
