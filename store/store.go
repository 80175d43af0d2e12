// Package store keeps the durable state of a Hayloft installation: small records under string keys with
// revisions, transactions that compare and swap, ordered watches and elections. Drivers: memory (a twin
// for tests) and etcd (embedded or a cluster); one conformance suite, storetest, runs against all.
package store

import "context"

// Limits every driver enforces, so that what works on one works on all (they are etcd's).
const (
	MaxOps       = 128             // comparisons, and operations, in one transaction, each
	MaxValueSize = 1 << 20         // bytes of one value
	MaxTxnSize   = 1536*1024 - 512 // bytes of one transaction: keys, values, and ItemOverhead for each condition and operation (a condition's key counts twice)
)

// Record is one key with its value. Revision is that of its last change; 0 means the key does not exist.
type Record struct {
	Key      string
	Value    []byte
	Revision int64
}

// Cond holds when the key's Revision is the given one (0: the key must not exist).
type Cond struct {
	Key      string
	Revision int64
}

// Op writes a key, or deletes it when Delete is set.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Put and Del make operations.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// Del deletes a key; deleting an absent key is no error.
func Del(key string) Op { return Op{Key: key, Delete: true} }

// Event is one change seen by a watch. A deletion has Deleted set, no Value, and the deletion's revision.
type Event struct {
	Record
	Deleted bool
}

// Store is the contract of all drivers. Keys have 1 to MaxKeySize bytes; those under ElectionPrefix are
// written by elections only. All methods are safe for concurrent use; contexts bound each call (a
// cancelled one ends it with context.Canceled). Errors: fault.Unavailable when the backend cannot be reached or lost its quorum, fault.Busy from
// Txn when a condition does not hold, fault.Invalid when a limit above is exceeded, fault.Unavailable
// after Close. Revisions are of the whole store, increase with every transaction, and are shared by all
// keys that one transaction wrote.
type Store interface {
	// Get returns the record, with Revision 0 when the key does not exist.
	Get(ctx context.Context, key string) (Record, error)
	// List returns all records whose key has the prefix, in key order, and the store's revision at which
	// this was the whole truth (to start a Watch after).
	List(ctx context.Context, prefix string) ([]Record, int64, error)
	// Txn applies all operations if all conditions hold, else none, and returns the new revision (the
	// present one when nothing changes). A key is written at most once in it (fault.Invalid). When a
	// condition does not hold the error is of class fault.Busy. An error of another class may mean that
	// the outcome is unknown; callers read again.
	Txn(ctx context.Context, conds []Cond, ops []Op) (int64, error)
	// Watch delivers every change of keys with the prefix after revision, in order, none lost, as batches
	// of one transaction each or more. The channel is closed when ctx ends, the store closes, or when the
	// driver cannot go on without a gap (compaction, a connection lost for long): the caller then Lists again.
	Watch(ctx context.Context, prefix string, revision int64) (<-chan []Event, error)
	// Campaign blocks until this process leads the named election (or ctx ends). value is kept with the
	// leadership for others to see.
	Campaign(ctx context.Context, name, value string) (Leadership, error)
	// Close ends all watches and leaderships and releases the backend. Idempotent.
	Close() error
}

// Leadership is held until lost or resigned.
type Leadership interface {
	// Fence is a condition that holds exactly while this leadership does: put into a transaction it makes
	// sure that a former leader cannot write.
	Fence() Cond
	// Lost is closed when the leadership ended for whatever reason.
	Lost() <-chan struct{}
	// Resign gives the leadership up so that another can have it at once. Idempotent.
	Resign(ctx context.Context) error
}
