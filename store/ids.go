package store

import (
	"context"
	"strconv"

	"hayloft/cloud/fault"
)

// MaxID is the largest id that keeps its place in key order.
const MaxID = 9_999_999_999

// NextIDs allocates n consecutive ids of a kind, starting at first for the very first one, and returns
// the conditions and operations that make the allocation true: they go into the transaction that writes
// the records, so that no id is lost or given twice. When that transaction is fault.Busy, start again
// from NextIDs (see Retry).
func NextIDs(ctx context.Context, s Store, kind string, n, first int) (ids []int, conds []Cond, ops []Op, err error) {
	if n < 1 || first < 0 {
		return nil, nil, nil, fault.Errorf(fault.Invalid, "%d ids of %s from %d: at least one, and none below zero", n, kind, first)
	}
	if err := checkKind(kind); err != nil {
		return nil, nil, nil, err
	}
	key := "next/" + kind
	rec, err := s.Get(ctx, key)
	if err != nil {
		return nil, nil, nil, err
	}
	next := first
	if rec.Revision != 0 {
		next, err = strconv.Atoi(string(rec.Value))
		if err != nil || next < 0 {
			return nil, nil, nil, fault.Errorf(fault.Corrupt, "key %q: %q is no id", key, rec.Value)
		}
		next = max(next, first)
	}
	if next > MaxID-n+1 {
		return nil, nil, nil, fault.Errorf(fault.OutOfSpace, "%s: all ids up to %d are used", kind, MaxID)
	}
	ids = make([]int, n)
	for i := range ids {
		ids[i] = next + i
	}
	conds = []Cond{{Key: key, Revision: rec.Revision}}
	ops = []Op{Put(key, []byte(strconv.Itoa(next+n)))}
	return ids, conds, ops, nil
}
