package storetest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"

	"hayloft/store"
)

func (b *bench) watch(s store.Store, prefix string, after int64) <-chan []store.Event {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	events, err := s.Watch(ctx, prefix, after)
	if err != nil {
		b.Fatalf("Watch(%q, %d): %v", prefix, after, err)
	}
	return events
}

// take receives until n events came.
func (b *bench) take(events <-chan []store.Event, n int) (got []store.Event) {
	b.Helper()
	for len(got) < n {
		batch := wait(b, fmt.Sprintf("event %d of %d", len(got)+1, n), events)
		if batch == nil {
			b.Fatalf("watch closed after %d of %d events", len(got), n)
		}
		got = append(got, batch...)
	}
	return got
}

func put(key, value string, revision int64) store.Event {
	return store.Event{Record: store.Record{Key: key, Value: []byte(value), Revision: revision}}
}

func deletion(key string, revision int64) store.Event {
	return store.Event{Record: store.Record{Key: key, Revision: revision}, Deleted: true}
}

func watchChanges(b *bench) {
	s, c := b.client(), corner()
	_, start := b.list(s, c)
	future := b.watch(s, c, start)
	first := b.put(s, c+"a", "1")
	second := b.put(s, c+"a", "2")
	third := b.txn(s, nil, store.Del(c+"a"), store.Put(c+"b", []byte("3")))
	b.txn(s, nil, store.Del(c+"a")) // changes nothing: no event
	fourth := b.put(s, c+"a", "4")
	want := []store.Event{put(c+"a", "1", first), put(c+"a", "2", second), deletion(c+"a", third), put(c+"b", "3", third), put(c+"a", "4", fourth)}
	if diff := cmp.Diff(want, b.take(future, len(want))); diff != "" {
		b.Errorf("watch opened before the changes: %s", diff)
	}
	for i, after := range []int64{start, first, second, third} {
		skip := []int{0, 1, 2, 4}[i]
		if diff := cmp.Diff(want[skip:], b.take(b.watch(s, c, after), len(want)-skip)); diff != "" {
			b.Errorf("watch after revision %d: %s", after, diff)
		}
	}
}

func watchPrefix(b *bench) {
	s, c := b.client(), corner()
	_, start := b.list(s, c)
	events := b.watch(s, c+"vm/", start)
	b.put(s, c+"vm", "not below the prefix")
	b.put(s, c+"vm0", "neither")
	first := b.put(s, c+"vm/", "prefix itself")
	second := b.txn(s, nil, store.Put(c+"vm/1", nil), store.Put(c+"host/1", nil))
	got := b.take(events, 2)
	if got[0].Key != c+"vm/" || got[0].Revision != first || got[1].Key != c+"vm/1" || got[1].Revision != second {
		b.Errorf("events %+v", got)
	}
}

func watchWithoutGap(b *bench) {
	const writers, each = 4, 40
	s, other, c, ctx := b.client(), b.client(), corner(), b.ctx()
	_, start := b.list(s, c)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				value := fmt.Appendf(nil, "%d.%d", w, i)
				ops := []store.Op{store.Put(fmt.Sprintf("%s%d/one", c, w), value), store.Put(fmt.Sprintf("%s%d/two", c, w), value)}
				if _, err := s.Txn(ctx, nil, ops); err != nil {
					b.Errorf("writer %d: %v", w, err)
				}
			}
		})
	}
	early := b.watch(s, c, start)
	_, middle := b.list(other, c)
	late := b.watch(other, c, middle)
	all.Wait()
	_, end := b.list(s, c)
	seenEarly, seenLate := drain(b, early, end), drain(b, late, end)
	if len(seenEarly) != 2*writers*each {
		b.Errorf("%d events of %d", len(seenEarly), 2*writers*each)
	}
	var want []store.Event
	for _, e := range seenEarly {
		if e.Revision > middle {
			want = append(want, e)
		}
	}
	if diff := cmp.Diff(want, seenLate); diff != "" {
		b.Errorf("two watches disagree: %s", diff)
	}
}

// drain receives everything up to the revision, and checks that batches are whole transactions, in order.
func drain(b *bench, events <-chan []store.Event, end int64) (all []store.Event) {
	last := int64(0)
	for last < end {
		batch := wait(b, fmt.Sprintf("events up to revision %d (at %d)", end, last), events)
		if batch == nil {
			b.Fatalf("watch closed at revision %d of %d", last, end)
		}
		if batch[0].Revision <= last {
			b.Errorf("batch begins with revision %d after %d", batch[0].Revision, last)
		}
		for _, e := range batch {
			if e.Revision < last {
				b.Errorf("revision %d after %d", e.Revision, last)
			}
			last = e.Revision
		}
		all = append(all, batch...)
	}
	return all
}

func watchEnds(b *bench) {
	s := b.client()
	_, start := b.list(s, "")
	ctx, cancel := context.WithCancel(context.Background())
	events, err := s.Watch(ctx, corner(), start)
	if err != nil {
		b.Fatal(err)
	}
	cancel()
	if batch := wait(b, "end of the watch after its context", events); batch != nil {
		b.Errorf("events %+v", batch)
	}
	// A reader that has stopped reading must not keep its watch from ending.
	c := corner()
	ctx, cancel = context.WithCancel(context.Background())
	stuck, err := s.Watch(ctx, c, start)
	if err != nil {
		b.Fatal(err)
	}
	b.put(s, c+"a", "unread")
	cancel()
	for batch := range stuck {
		_ = batch // one batch may be under way
	}
	events = b.watch(s, corner(), start)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	if batch := wait(b, "end of the watch after Close", events); batch != nil {
		b.Errorf("events %+v", batch)
	}
}

func watchCompacted(b *bench) {
	s, c := b.client(), corner()
	compactor, ok := s.(Compactor)
	if !ok {
		b.Fatalf("%T cannot be told to compact", s)
	}
	first := b.put(s, c+"a", "1")
	b.put(s, c+"a", "2")
	last := b.put(s, c+"a", "3")
	if err := compactor.Compact(b.ctx(), last); err != nil {
		b.Fatal(err)
	}
	// A member of a cluster that has not heard of it yet still has the history: then all of it comes.
	deadline := time.Now().Add(patience)
	for batch := []store.Event{}; batch != nil; {
		batch = wait(b, "end of a watch from before the compaction", b.watch(s, c, first))
		if batch != nil && string(batch[0].Value) != "2" {
			b.Fatalf("a watch with a gap delivered %+v", batch)
		}
		if time.Now().After(deadline) {
			b.Fatalf("the history is not forgotten: %+v", batch)
		}
	}
	recs, revision := b.list(s, c)
	if len(recs) != 1 || string(recs[0].Value) != "3" {
		b.Errorf("records after compaction: %+v", recs)
	}
	again := b.watch(s, c, revision)
	next := b.put(s, c+"a", "4")
	if got := b.take(again, 1); got[0].Revision != next {
		b.Errorf("after listing again: %+v", got)
	}
}

// manyWatches ends a crowd of watches at once, while one goes on.
func manyWatches(b *bench) {
	s, c := b.client(), corner()
	_, start := b.list(s, c)
	one := b.watch(s, c, start)
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		var crowd []<-chan []store.Event
		for range 150 {
			events, err := s.Watch(ctx, c, start)
			if err != nil {
				b.Fatal(err)
			}
			crowd = append(crowd, events)
		}
		revision := b.put(s, c+"a", "seen by the one")
		cancel()
		for _, events := range crowd {
			for wait(b, "end of a watch in the crowd", events) != nil {
			}
		}
		if got := b.take(one, 1); got[0].Revision != revision {
			b.Errorf("event %+v, want revision %d", got[0], revision)
		}
	}
}
