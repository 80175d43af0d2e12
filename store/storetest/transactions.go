package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/store"
)

func conditions(b *bench) {
	s, c := b.client(), corner()
	there, gone := c+"there", c+"gone"
	old := b.put(s, there, "1")
	now := b.put(s, there, "2")
	b.put(s, gone, "x")
	b.txn(s, nil, store.Del(gone))
	for _, row := range []struct {
		name  string
		conds []store.Cond
		holds bool
		found int64
	}{
		{"none", nil, true, 0},
		{"present revision", []store.Cond{{Key: there, Revision: now}}, true, 0},
		{"old revision", []store.Cond{{Key: there, Revision: old}}, false, now},
		{"future revision", []store.Cond{{Key: there, Revision: now + 1000}}, false, now},
		{"must not exist but does", []store.Cond{{Key: there}}, false, now},
		{"must not exist", []store.Cond{{Key: gone}}, true, 0},
		{"must exist but does not", []store.Cond{{Key: gone, Revision: old}}, false, 0},
		{"second fails", []store.Cond{{Key: gone}, {Key: there, Revision: old}}, false, now},
		{"both hold", []store.Cond{{Key: gone}, {Key: there, Revision: now}}, true, 0},
	} {
		mark := c + "mark/" + row.name
		_, err := s.Txn(b.ctx(), row.conds, []store.Op{store.Put(mark, nil)})
		if written := b.get(s, mark).Revision != 0; written != row.holds {
			b.Errorf("%s: written is %v", row.name, written)
		}
		if row.holds {
			if err != nil {
				b.Errorf("%s: %v", row.name, err)
			}
			continue
		}
		b.class(row.name, err, fault.Busy)
		var conflict *store.Conflict
		if last := row.conds[len(row.conds)-1]; !errors.As(err, &conflict) || conflict.Cond != last || conflict.Found != row.found {
			b.Errorf("%s: conflict %+v, want %+v found %d", row.name, conflict, last, row.found)
		}
	}
	if revision := b.txn(s, []store.Cond{{Key: there, Revision: now}}); revision < now {
		b.Errorf("a transaction of conditions only returned revision %d", revision)
	}
}

func allOrNothing(b *bench) {
	s, c := b.client(), corner()
	kept := b.put(s, c+"kept", "old")
	_, err := s.Txn(b.ctx(), []store.Cond{{Key: c + "kept", Revision: kept}, {Key: c + "missing", Revision: kept}},
		[]store.Op{store.Put(c+"kept", []byte("new")), store.Put(c+"made", nil), store.Del(c + "kept2")})
	b.class("Txn", err, fault.Busy)
	recs, revision := b.list(s, c)
	if len(recs) != 1 || string(recs[0].Value) != "old" || recs[0].Revision != kept || revision != kept {
		b.Errorf("after a refused transaction: %+v at %d", recs, revision)
	}
}

func counter(b *bench) {
	const writers, each = 8, 15
	c, ctx := corner(), b.ctx()
	clients := []store.Store{b.client(), b.client()}
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for range each {
				one := func() error { return increment(ctx, clients[w%2], c+"count") }
				err := store.Retry(ctx, one)
				for fault.Is(err, fault.Busy) && ctx.Err() == nil { // the others were quicker each time: it may be a slow store
					err = store.Retry(ctx, one)
				}
				if err != nil {
					b.Errorf("writer %d: %v", w, err)
				}
			}
		})
	}
	all.Wait()
	if got := string(b.get(clients[0], c+"count").Value); got != strconv.Itoa(writers*each) {
		b.Errorf("%d increments counted %s", writers*each, got)
	}
}

func increment(ctx context.Context, s store.Store, key string, conds ...store.Cond) error {
	rec, err := s.Get(ctx, key)
	if err != nil {
		return err
	}
	n, _ := strconv.Atoi(string(rec.Value))
	conds = append([]store.Cond{{Key: key, Revision: rec.Revision}}, conds...)
	_, err = s.Txn(ctx, conds, []store.Op{store.Put(key, []byte(strconv.Itoa(n+1)))})
	return err
}

func pairsStayEqual(b *bench) {
	const writers, each = 3, 30
	s, c, ctx := b.client(), corner(), b.ctx()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				value := fmt.Appendf(nil, "%d.%d", w, i)
				if _, err := s.Txn(ctx, nil, []store.Op{store.Put(c+"left", value), store.Put(c+"right", value)}); err != nil {
					b.Errorf("Txn: %v", err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for reading := true; reading; {
		recs, _ := b.list(s, c)
		if len(recs) != 0 && (len(recs) != 2 || string(recs[0].Value) != string(recs[1].Value)) {
			b.Errorf("half a transaction was visible: %+v", recs)
		}
		select {
		case <-done:
			reading = false
		default:
		}
	}
}

func limits(b *bench) {
	s, c := b.client(), corner()
	many := func(n int) (conds []store.Cond, ops []store.Op) {
		for i := range n {
			key := fmt.Sprintf("%s%03d", c, i)
			conds = append(conds, store.Cond{Key: key})
			ops = append(ops, store.Put(key, []byte("x")))
		}
		return conds, ops
	}
	conds128, ops128 := many(store.MaxOps)
	conds129, ops129 := many(store.MaxOps + 1)
	largest := make([]byte, store.MaxValueSize)
	rest := store.MaxTxnSize - store.MaxValueSize - 2*(len(c)+1+store.ItemOverhead)
	long := c + strings.Repeat("k", store.MaxKeySize-len(c))
	crowd := func(total int) (conds []store.Cond, ops []store.Op) {
		room := total
		for i := range store.MaxOps {
			key := fmt.Sprintf("%scrowd/%03d", c, i)
			conds = append(conds, store.Cond{Key: key})
			ops = append(ops, store.Op{Key: key})
			room -= 3*len(key) + 2*store.ItemOverhead
		}
		for i := range ops {
			ops[i].Value = make([]byte, room/len(ops))
		}
		ops[0].Value = make([]byte, len(ops[0].Value)+room%len(ops))
		return conds, ops
	}
	crowdConds, crowdOps := crowd(store.MaxTxnSize)
	_, crowdOver := crowd(store.MaxTxnSize + 1)
	for _, row := range []struct {
		name  string
		conds []store.Cond
		ops   []store.Op
		fine  bool
	}{
		{"most conditions and operations", conds128, ops128, true},
		{"too many conditions", conds129, nil, false},
		{"too many operations", nil, ops129, false},
		{"largest value", nil, []store.Op{store.Put(c+"a", largest)}, true},
		{"value too large", nil, []store.Op{store.Put(c+"a", make([]byte, store.MaxValueSize+1))}, false},
		{"largest transaction", nil, []store.Op{store.Put(c+"a", largest), store.Put(c+"b", make([]byte, rest))}, true},
		{"transaction too large", nil, []store.Op{store.Put(c+"a", largest), store.Put(c+"b", make([]byte, rest+1))}, false},
		{"largest transaction of most items", crowdConds, crowdOps, true},
		{"transaction of most items too large", crowdConds, crowdOver, false},
		{"longest key", nil, []store.Op{store.Put(long, nil)}, true},
		{"key too long", nil, []store.Op{store.Put(long+"k", nil)}, false},
		{"empty key", nil, []store.Op{store.Put("", nil)}, false},
		{"empty key in a condition", []store.Cond{{}}, nil, false},
		{"negative revision", []store.Cond{{Key: c + "a", Revision: -1}}, nil, false},
		{"key twice", nil, []store.Op{store.Put(c+"a", nil), store.Del(c + "a")}, false},
		{"key of an election", nil, []store.Op{store.Put(store.ElectionPrefix+"x/1", nil)}, false},
	} {
		_, before := b.list(s, c+"nothing")
		_, err := s.Txn(b.ctx(), row.conds, row.ops)
		if row.fine {
			if err != nil {
				b.Errorf("%s: %v", row.name, err)
			}
			continue
		}
		b.class(row.name, err, fault.Invalid)
		if _, after := b.list(s, c+"nothing"); after != before {
			b.Errorf("%s: refused, but the store moved from %d to %d", row.name, before, after)
		}
	}
	_, err := s.Get(b.ctx(), "")
	b.class("Get of an empty key", err, fault.Invalid)
	recs, _ := b.list(s, c)
	var ops []store.Op
	for _, rec := range recs {
		if ops = append(ops, store.Del(rec.Key)); len(ops) == store.MaxOps {
			b.txn(s, nil, ops...)
			ops = nil
		}
	}
	b.txn(s, nil, ops...)
}
