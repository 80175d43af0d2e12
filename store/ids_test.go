package store_test

import (
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"hayloft/cloud/fault"
	"hayloft/store"
	"hayloft/store/memory"
)

func TestNextIDs(t *testing.T) {
	s := memory.New()
	defer s.Close()
	take := func(n, first int) []int {
		t.Helper()
		ids, conds, ops, err := store.NextIDs(t.Context(), s, "vm", n, first)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Txn(t.Context(), conds, ops); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	for _, row := range []struct {
		n, first int
		want     []int
	}{{2, 0, []int{0, 1}}, {1, 0, []int{2}}, {2, 100, []int{100, 101}}, {1, 0, []int{102}}} {
		if got := take(row.n, row.first); !slices.Equal(got, row.want) {
			t.Errorf("%d ids from %d: %v, want %v", row.n, row.first, got, row.want)
		}
	}
	// What is not committed is not used up.
	for range 2 {
		if ids, _, _, err := store.NextIDs(t.Context(), s, "vm", 1, 0); err != nil || ids[0] != 103 {
			t.Errorf("uncommitted: %v, %v", ids, err)
		}
	}
}

func TestNextIDsRefuses(t *testing.T) {
	s := memory.New()
	defer s.Close()
	for kind, value := range map[string]string{"spoilt": "x", "below": "-1", "full": strconv.Itoa(store.MaxID)} {
		if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put("next/"+kind, []byte(value))}); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		kind     string
		n, first int
		class    fault.Class
	}{
		{"vm", 0, 0, fault.Invalid}, {"vm", 1, -1, fault.Invalid}, {"", 1, 0, fault.Invalid}, {"a/b", 1, 0, fault.Invalid},
		{"spoilt", 1, 0, fault.Corrupt}, {"below", 1, 0, fault.Corrupt}, {"full", 2, 0, fault.OutOfSpace},
	} {
		if _, _, _, err := store.NextIDs(t.Context(), s, row.kind, row.n, row.first); !fault.Is(err, row.class) {
			t.Errorf("%+v: %v (%v)", row, err, fault.ClassOf(err))
		}
	}
}

// TestCreateConcurrently is how operations create things: ids and records in one transaction.
func TestCreateConcurrently(t *testing.T) {
	s, table := newTable(t)
	const writers, each = 6, 20
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				if err := store.Retry(t.Context(), func() error {
					ids, conds, ops, err := store.NextIDs(t.Context(), s, "vm", 2, 0)
					if err != nil {
						return err
					}
					for _, id := range ids {
						op, err := table.PutOp(id, machine{})
						if err != nil {
							return err
						}
						conds, ops = append(conds, table.Cond(id, 0)), append(ops, op)
					}
					_, err = s.Txn(t.Context(), conds, ops)
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	rows, _, err := table.List(t.Context())
	if err != nil || len(rows) != 2*writers*each || rows[len(rows)-1].ID != len(rows)-1 {
		t.Errorf("%d rows of %d, %v", len(rows), 2*writers*each, err)
	}
}

// TestRetryGivesUp runs on a clock of its own.
func TestRetryGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		err := store.Retry(t.Context(), func() error { calls++; return fault.Errorf(fault.Busy, "always") })
		if !fault.Is(err, fault.Busy) || calls != 40 {
			t.Errorf("%v after %d calls", err, calls)
		}
	})
}
