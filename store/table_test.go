package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hayloft/cloud/fault"
	"hayloft/internal/leaktest"
	"hayloft/store"
	"hayloft/store/memory"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type machine struct {
	Name string  `json:"name"`
	Load float64 `json:"load"`
}

func newTable(t *testing.T) (store.Store, store.Table[machine]) {
	s := memory.New()
	t.Cleanup(func() { s.Close() })
	return s, store.NewTable[machine](s, "vm")
}

func add(t *testing.T, s store.Store, table store.Table[machine], id int, m machine) int64 {
	t.Helper()
	op, err := table.PutOp(id, m)
	if err != nil {
		t.Fatal(err)
	}
	revision, err := s.Txn(t.Context(), []store.Cond{table.Cond(id, 0)}, []store.Op{op})
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func TestTable(t *testing.T) {
	s, table := newTable(t)
	var want []store.Row[machine]
	for _, id := range []int{0, 2, 10, 9, store.MaxID} {
		m := machine{Name: fmt.Sprint("web-", id)}
		revision := add(t, s, table, id, m)
		got, rev, err := table.Get(t.Context(), id)
		if err != nil || got != m || rev != revision {
			t.Errorf("Get(%d): %+v at %d, %v", id, got, rev, err)
		}
		want = append(want, store.Row[machine]{ID: id, Revision: revision, Value: m})
	}
	other := store.NewTable[machine](s, "vmtemplate")
	add(t, s, other, 1, machine{Name: "of another kind"})
	slices.SortFunc(want, func(a, b store.Row[machine]) int { return a.ID - b.ID })
	rows, revision, err := table.List(t.Context())
	if diff := cmp.Diff(want, rows); diff != "" || err != nil {
		t.Errorf("List: %v\n%s", err, diff)
	}
	if last, err := s.Txn(t.Context(), nil, []store.Op{table.DelOp(2)}); err != nil || last != revision+1 {
		t.Errorf("List at revision %d, the next transaction at %d: %v", revision, last, err)
	}
	if _, _, err := table.Get(t.Context(), 2); !fault.Is(err, fault.NotFound) || err.Error() != "vm 2 does not exist" {
		t.Errorf("Get of a deleted value: %v", err)
	}
}

func TestTableKeys(t *testing.T) {
	_, table := newTable(t)
	if key := table.Key(12); key != "vm/0000000012" {
		t.Errorf("Key(12) = %q", key)
	}
	if id, ok := table.ID("vm/0000000012"); !ok || id != 12 {
		t.Errorf("ID = %d, %v", id, ok)
	}
	for _, key := range []string{"vm/12", "vm/", "vm/00000000x2", "image/0000000012", "vm/0000000012/disk", "vm/-000000012"} {
		if id, ok := table.ID(key); ok {
			t.Errorf("ID(%q) = %d", key, id)
		}
	}
	for _, kind := range []string{"", "a/b", "next", "election"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("NewTable(%q) did not panic", kind)
				}
			}()
			store.NewTable[machine](nil, kind)
		}()
	}
}

func TestTableRefuses(t *testing.T) {
	s, table := newTable(t)
	for name, c := range map[string]struct {
		id int
		m  machine
	}{
		"negative id": {-1, machine{}},
		"id too big":  {store.MaxID + 1, machine{}},
		"no JSON":     {1, machine{Load: math.NaN()}},
		"too large":   {1, machine{Name: strings.Repeat("x", store.MaxValueSize)}},
	} {
		if _, err := table.PutOp(c.id, c.m); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), fmt.Sprintf("vm %d", c.id)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put(table.Key(3), []byte("{"))}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := table.Get(t.Context(), 3); !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "vm 3") {
		t.Errorf("Get of half a value: %v", err)
	}
	if _, _, err := table.List(t.Context()); !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "vm 3") {
		t.Errorf("List with half a value: %v", err)
	}
}

func TestUpdateConcurrently(t *testing.T) {
	s, table := newTable(t)
	add(t, s, table, 1, machine{})
	const writers, each = 8, 20
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				if _, _, err := table.Update(t.Context(), 1, func(m *machine) error { m.Load++; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if m, _, err := table.Get(t.Context(), 1); err != nil || m.Load != writers*each {
		t.Errorf("%v updates of %d: %v", m.Load, writers*each, err)
	}
}

func TestUpdateRefused(t *testing.T) {
	s, table := newTable(t)
	before := add(t, s, table, 1, machine{Name: "old"})
	refusal := fault.Errorf(fault.Busy, "disk is in use")
	for name, c := range map[string]struct {
		id     int
		change error
		conds  []store.Cond
		class  fault.Class
	}{
		"absent":         {2, nil, nil, fault.NotFound},
		"change refuses": {1, refusal, nil, fault.Busy},
		"fence is lost":  {1, nil, []store.Cond{{Key: "election/boss/1", Revision: 1}}, fault.Busy},
	} {
		calls := 0
		_, _, err := table.Update(t.Context(), c.id, func(m *machine) error {
			calls++
			m.Name = "new"
			return c.change
		}, c.conds...)
		if !fault.Is(err, c.class) || calls > 1 || c.change != nil && !errors.Is(err, c.change) {
			t.Errorf("%s: %v after %d calls", name, err, calls)
		}
	}
	if m, revision, err := table.Get(t.Context(), 1); err != nil || m.Name != "old" || revision != before {
		t.Errorf("after refused updates: %+v at %d, %v", m, revision, err)
	}
}

func TestRetry(t *testing.T) {
	busy := fault.Errorf(fault.Busy, "changed meanwhile")
	calls := 0
	if err := store.Retry(t.Context(), func() error {
		if calls++; calls < 4 {
			return busy
		}
		return nil
	}); err != nil || calls != 4 {
		t.Errorf("%v after %d calls", err, calls)
	}
	calls = 0
	other := errors.New("other")
	if err := store.Retry(t.Context(), func() error { calls++; return other }); err != other || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := store.Retry(ctx, func() error { cancel(); return busy })
	if !errors.Is(err, context.Canceled) || !errors.Is(err, busy) {
		t.Errorf("cancelled: %v", err)
	}
	calls = 0
	if err := store.Retry(ctx, func() error { calls++; return nil }); !errors.Is(err, context.Canceled) || calls != 0 {
		t.Errorf("cancelled before: %v after %d calls", err, calls)
	}
}
