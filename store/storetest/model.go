package storetest

import (
	"errors"
	"sort"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// model compares the driver with a map through random transactions, and its watch with a log.
func model(b *bench) {
	s := b.client()
	rapid.Check(b.T, func(t *rapid.T) {
		c := corner()
		_, start := b.list(s, c)
		m := &machine{bench: b, store: s, corner: c, now: start, truth: map[string]store.Record{}, events: b.watch(s, c, start)}
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			rapid.SampledFrom([]func(*rapid.T){m.txn, m.txn, m.get, m.list}).Draw(t, "step")(t)
		}
		m.history(t)
	})
}

type machine struct {
	*bench
	store  store.Store
	corner string
	now    int64
	truth  map[string]store.Record
	log    []store.Event
	events <-chan []store.Event
}

func (m *machine) key(t *rapid.T, label string) string {
	return m.corner + rapid.SampledFrom([]string{"a", "a/1", "a/2", "b", "b/\xff"}).Draw(t, label)
}

func (m *machine) txn(t *rapid.T) {
	var conds []store.Cond
	holds := true
	for range rapid.IntRange(0, 2).Draw(t, "conditions") {
		key := m.key(t, "compared")
		cond := store.Cond{Key: key, Revision: m.truth[key].Revision}
		if rapid.IntRange(0, 3).Draw(t, "wrong") == 0 {
			cond.Revision = rapid.SampledFrom([]int64{0, 1, m.now, m.now + 7}).Draw(t, "revision")
		}
		holds = holds && cond.Revision == m.truth[key].Revision
		conds = append(conds, cond)
	}
	ops := map[string]store.Op{}
	for range rapid.IntRange(0, 3).Draw(t, "operations") {
		key := m.key(t, "written")
		if ops[key] = store.Put(key, rapid.SliceOfN(rapid.Byte(), 0, 5).Draw(t, "value")); rapid.Bool().Draw(t, "delete") {
			ops[key] = store.Del(key)
		}
	}
	var list []store.Op
	for _, key := range keysOf(ops) {
		list = append(list, ops[key])
	}
	revision, err := m.store.Txn(m.ctx(), conds, list)
	if !holds {
		var conflict *store.Conflict
		if !fault.Is(err, fault.Busy) || !errors.As(err, &conflict) || conflict.Found != m.truth[conflict.Key].Revision {
			t.Fatalf("Txn(%v) that must not happen: %v", conds, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("Txn(%v, %v): %v", conds, list, err)
	}
	m.apply(t, list, revision)
}

func (m *machine) apply(t *rapid.T, ops []store.Op, revision int64) {
	changed := false
	for _, op := range ops {
		rec := store.Record{Key: op.Key, Value: op.Value, Revision: revision}
		if _, exists := m.truth[op.Key]; op.Delete && !exists {
			continue
		}
		changed = true
		m.log = append(m.log, store.Event{Record: rec, Deleted: op.Delete})
		if op.Delete {
			delete(m.truth, op.Key)
		} else {
			m.truth[op.Key] = rec
		}
	}
	if changed && revision <= m.now || !changed && revision != m.now {
		t.Fatalf("transaction (changed: %v) took the store from %d to %d", changed, m.now, revision)
	}
	m.now = revision
}

func (m *machine) get(t *rapid.T) {
	key := m.key(t, "key")
	want, exists := m.truth[key]
	if !exists {
		want.Key = key
	}
	if diff := cmp.Diff(want, m.bench.get(m.store, key), empty); diff != "" {
		t.Fatalf("Get(%q): %s", key, diff)
	}
}

func (m *machine) list(t *rapid.T) {
	prefix := m.corner + rapid.SampledFrom([]string{"", "a", "a/", "b/\xff", "c"}).Draw(t, "prefix")
	var want []store.Record
	for _, key := range keysOf(m.truth) {
		if strings.HasPrefix(key, prefix) {
			want = append(want, m.truth[key])
		}
	}
	got, revision := m.bench.list(m.store, prefix)
	if diff := cmp.Diff(want, got, empty); diff != "" || revision != m.now {
		t.Fatalf("List(%q) at %d, want at %d: %s", prefix, revision, m.now, diff)
	}
}

func (m *machine) history(t *rapid.T) {
	if len(m.log) == 0 {
		return
	}
	got := m.take(m.events, len(m.log))
	if diff := cmp.Diff(m.log, got, empty); diff != "" {
		t.Fatalf("watch of everything: %s", diff)
	}
}

// empty makes no difference between nothing and nil.
var empty = cmpopts.EquateEmpty()

func keysOf[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}
