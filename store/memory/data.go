package memory

import (
	"slices"
	"sort"
	"strings"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// maxHistory is how many transactions a watch may lag behind before it must list again.
const maxHistory = 10_000

// data is what all clients of one memory store share.
type data struct {
	mu         sync.Mutex
	revision   int64
	keys       []string // sorted
	records    map[string]store.Record
	history    []transaction          // of increasing revisions
	compacted  int64                  // history before this revision is forgotten
	changed    chan struct{}          // closed and made anew when anything above changed
	candidates map[string]*leadership // of all elections, by key
}

type transaction struct {
	revision int64
	events   []store.Event
}

func (d *data) get(key string) store.Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, ok := d.records[key]
	if !ok {
		return store.Record{Key: key}
	}
	rec.Value = slices.Clone(rec.Value)
	return rec
}

func (d *data) list(prefix string) ([]store.Record, int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []store.Record
	for _, key := range d.keys[sort.SearchStrings(d.keys, prefix):] {
		if !strings.HasPrefix(key, prefix) {
			break
		}
		rec := d.records[key]
		rec.Value = slices.Clone(rec.Value)
		found = append(found, rec)
	}
	return found, d.revision
}

// apply does all operations if all conditions hold, and returns the revision after that, which is a new
// one when anything changed.
func (d *data) apply(conds []store.Cond, ops []store.Op) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range conds {
		if found := d.records[c.Key].Revision; found != c.Revision {
			return 0, store.NewConflict(c, found)
		}
	}
	return d.commit(ops), nil
}

// commit does the operations; the caller holds the lock.
func (d *data) commit(ops []store.Op) int64 {
	next := d.revision + 1
	var events []store.Event
	for _, op := range ops {
		if op.Delete {
			if _, exists := d.records[op.Key]; exists {
				d.remove(op.Key)
				events = append(events, store.Event{Record: store.Record{Key: op.Key, Revision: next}, Deleted: true})
			}
			continue
		}
		rec := store.Record{Key: op.Key, Value: slices.Clone(op.Value), Revision: next}
		d.insert(rec)
		events = append(events, store.Event{Record: rec})
	}
	if len(events) == 0 {
		return d.revision
	}
	d.revision = next
	d.history = append(d.history, transaction{next, events})
	if len(d.history) >= 2*maxHistory {
		d.forget(d.history[maxHistory].revision)
	}
	d.announce()
	return next
}

func (d *data) insert(rec store.Record) {
	if d.records == nil {
		d.records = map[string]store.Record{}
	}
	if _, exists := d.records[rec.Key]; !exists {
		d.keys = slices.Insert(d.keys, sort.SearchStrings(d.keys, rec.Key), rec.Key)
	}
	d.records[rec.Key] = rec
}

func (d *data) remove(key string) {
	delete(d.records, key)
	i := sort.SearchStrings(d.keys, key)
	d.keys = slices.Delete(d.keys, i, i+1)
}

func (d *data) announce() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// since returns the changes with the prefix of all transactions after the revision, the revision up to
// which that is the whole truth, and what will be closed at the next change; ok is false when the history
// does not reach back that far.
func (d *data) since(after int64, prefix string) (events []store.Event, last int64, changed <-chan struct{}, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if after+1 < d.compacted {
		return nil, 0, nil, false
	}
	first := sort.Search(len(d.history), func(i int) bool { return d.history[i].revision > after })
	for _, t := range d.history[first:] {
		for _, e := range t.events {
			if strings.HasPrefix(e.Key, prefix) {
				e.Value = slices.Clone(e.Value)
				events = append(events, e)
			}
		}
	}
	return events, d.revision, d.changed, true
}

func (d *data) compact(revision int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if revision > d.revision {
		return fault.Errorf(fault.Invalid, "compaction at revision %d: the store is at %d", revision, d.revision)
	}
	d.forget(revision)
	d.announce()
	return nil
}

func (d *data) forget(before int64) {
	if before <= d.compacted {
		return
	}
	d.compacted = before
	keep := sort.Search(len(d.history), func(i int) bool { return d.history[i].revision >= before })
	d.history = slices.Clone(d.history[keep:])
}
