package storetest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"hayloft/store"
)

func records(b *bench) {
	s, key := b.client(), corner()+"vm"
	if rec := b.get(s, key); rec.Key != key || rec.Revision != 0 || rec.Value != nil {
		b.Errorf("absent key: %+v", rec)
	}
	for _, value := range []string{"first", "", "binary \x00\xff\n", "first"} {
		revision := b.put(s, key, value)
		if rec := b.get(s, key); rec.Key != key || string(rec.Value) != value || rec.Revision != revision {
			b.Errorf("after Put(%q) at %d: %+v", value, revision, rec)
		}
	}
	b.txn(s, nil, store.Del(key))
	if rec := b.get(s, key); rec.Revision != 0 || rec.Value != nil {
		b.Errorf("deleted key: %+v", rec)
	}
	b.txn(s, nil, store.Del(key))
	if other := b.client(); b.put(s, key, "seen by others") != b.get(other, key).Revision {
		b.Errorf("another client does not see the record")
	}
}

func valuesAreCopies(b *bench) {
	s, key := b.client(), corner()+"vm"
	value := []byte("abc")
	revision := b.txn(s, nil, store.Put(key, value))
	value[0] = 'X'
	b.get(s, key).Value[1] = 'X'
	recs, _ := b.list(s, key)
	recs[0].Value[2] = 'X'
	events, err := s.Watch(b.ctx(), key, revision-1)
	if err != nil {
		b.Fatal(err)
	}
	wait(b, "watch", events)[0].Value[0] = 'X'
	if rec := b.get(s, key); string(rec.Value) != "abc" {
		b.Errorf("the stored value changed to %q", rec.Value)
	}
}

func listOrder(b *bench) {
	s, c := b.client(), corner()
	keys := []string{"a", "a/", "a/1", "a/10", "a/2", "a/\xfe", "a/\xff", "a/\xff\xff", "a/ä", "a0", "b", "b/1", "\xff", "\xff\xff"}
	for i, key := range keys {
		b.put(s, c+key, fmt.Sprint(i))
	}
	slices.Sort(keys)
	for _, prefix := range []string{"", "a", "a/", "a/1", "a/\xff", "b", "c", "\xff", "a/10x"} {
		var want, got []string
		for _, key := range keys {
			if len(key) >= len(prefix) && key[:len(prefix)] == prefix {
				want = append(want, c+key)
			}
		}
		recs, _ := b.list(s, c+prefix)
		for _, rec := range recs {
			got = append(got, rec.Key)
			if one := b.get(s, rec.Key); !cmp.Equal(one, rec) {
				b.Errorf("List has %+v, Get %+v", rec, one)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			b.Errorf("List(%q): %s", prefix, diff)
		}
	}
	all, _ := b.list(s, "")
	if !slices.IsSortedFunc(all, func(x, y store.Record) int { return strings.Compare(x.Key, y.Key) }) || len(all) < len(keys) {
		b.Errorf("List of everything: %d records, or not in order", len(all))
	}
}

func revisions(b *bench) {
	s, c := b.client(), corner()
	first := b.txn(s, nil, store.Put(c+"a", nil), store.Put(c+"b", nil))
	if a, other := b.get(s, c+"a"), b.get(s, c+"b"); a.Revision != first || other.Revision != first {
		b.Errorf("transaction at %d wrote revisions %d and %d", first, a.Revision, other.Revision)
	}
	second := b.put(s, c+"b", "again")
	if second <= first {
		b.Errorf("revision %d after %d", second, first)
	}
	if a := b.get(s, c+"a"); a.Revision != first {
		b.Errorf("an untouched key moved from %d to %d", first, a.Revision)
	}
	third := b.txn(s, nil, store.Del(c+"b"))
	if third <= second {
		b.Errorf("deletion at %d after %d", third, second)
	}
	for _, prefix := range []string{c, c + "nothing"} {
		if _, revision := b.list(s, prefix); revision != third {
			b.Errorf("List(%q) at revision %d, want %d", prefix, revision, third)
		}
	}
	if same := b.txn(s, nil, store.Del(c+"b")); same != third {
		b.Errorf("a transaction that changed nothing moved the store from %d to %d", third, same)
	}
}
