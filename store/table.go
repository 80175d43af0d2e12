package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
)

// Table keeps values of one kind as JSON under "kind/%010d" keys. It holds no state: all of it is in the
// store, and a Table may be copied.
type Table[T any] struct {
	store Store
	kind  string
}

// Row is one value of a table.
type Row[T any] struct {
	ID       int
	Revision int64
	Value    T
}

// NewTable makes a table of the kind, a word without a slash such as "vm"; it panics on any other kind.
func NewTable[T any](s Store, kind string) Table[T] {
	if err := checkKind(kind); err != nil {
		panic(err)
	}
	return Table[T]{s, kind}
}

func checkKind(kind string) error {
	if kind == "" || strings.Contains(kind, "/") || kind+"/" == ElectionPrefix || kind == "next" {
		return fault.Errorf(fault.Invalid, "%q is no kind of record", kind)
	}
	return nil
}

// Kind is the word the table was made with.
func (t Table[T]) Kind() string { return t.kind }

// Prefix is that of all keys of the table, for Watch.
func (t Table[T]) Prefix() string { return t.kind + "/" }

// Key is where the value with this id lives.
func (t Table[T]) Key(id int) string { return fmt.Sprintf("%s/%010d", t.kind, id) }

// ID is the inverse of Key; ok is false for a key of another table.
func (t Table[T]) ID(key string) (id int, ok bool) {
	digits, ok := strings.CutPrefix(key, t.Prefix())
	if !ok {
		return 0, false
	}
	id, err := strconv.Atoi(digits)
	return id, err == nil && id >= 0 && t.Key(id) == key
}

// Get reads one value and its revision. fault.NotFound, naming kind and id, when there is none;
// fault.Corrupt when it is not the JSON of a T.
func (t Table[T]) Get(ctx context.Context, id int) (T, int64, error) {
	var none T
	rec, err := t.store.Get(ctx, t.Key(id))
	if err != nil {
		return none, 0, fmt.Errorf("%s %d: %w", t.kind, id, err)
	}
	if rec.Revision == 0 {
		return none, 0, fault.Errorf(fault.NotFound, "%s %d does not exist", t.kind, id)
	}
	row, err := t.Decode(rec)
	return row.Value, row.Revision, err
}

// List reads all values in the order of their ids, and the store's revision at which this was the whole
// truth.
func (t Table[T]) List(ctx context.Context) ([]Row[T], int64, error) {
	records, revision, err := t.store.List(ctx, t.Prefix())
	if err != nil {
		return nil, 0, fmt.Errorf("list of %s: %w", t.kind, err)
	}
	rows := make([]Row[T], len(records))
	for i, rec := range records {
		if rows[i], err = t.Decode(rec); err != nil {
			return nil, 0, err
		}
	}
	return rows, revision, nil
}

// Decode turns a record of this table, as List and Watch deliver it, into a row.
func (t Table[T]) Decode(rec Record) (Row[T], error) {
	id, ok := t.ID(rec.Key)
	if !ok {
		return Row[T]{}, fault.Errorf(fault.Corrupt, "key %q is not of a %s", rec.Key, t.kind)
	}
	row := Row[T]{ID: id, Revision: rec.Revision}
	if err := json.Unmarshal(rec.Value, &row.Value); err != nil {
		return Row[T]{}, fault.Errorf(fault.Corrupt, "%s %d: %w", t.kind, id, err)
	}
	return row, nil
}

// PutOp is the operation that writes the value. fault.Invalid when v has no JSON or the id no place.
func (t Table[T]) PutOp(id int, v T) (Op, error) {
	if id < 0 || id > MaxID {
		return Op{}, fault.Errorf(fault.Invalid, "%s %d: ids are 0 to %d", t.kind, id, MaxID)
	}
	value, err := json.Marshal(v)
	if err != nil {
		return Op{}, fault.Errorf(fault.Invalid, "%s %d: %w", t.kind, id, err)
	}
	if len(value) > MaxValueSize {
		return Op{}, fault.Errorf(fault.Invalid, "%s %d: %d bytes of JSON, at most %d", t.kind, id, len(value), MaxValueSize)
	}
	return Put(t.Key(id), value), nil
}

// DelOp is the operation that deletes the value.
func (t Table[T]) DelOp(id int) Op { return Del(t.Key(id)) }

// Cond holds when the value is at the revision (0: when there is none).
func (t Table[T]) Cond(id int, revision int64) Cond { return Cond{Key: t.Key(id), Revision: revision} }

// Update reads the value, lets change modify it and writes it back if nobody else did meanwhile; else it
// starts again, as Retry does. It returns what was written and its revision. An error of change, which may
// be called several times, or one of conds (a Fence, say) that does not hold ends it with nothing written.
func (t Table[T]) Update(ctx context.Context, id int, change func(*T) error, conds ...Cond) (T, int64, error) {
	var written T
	var revision int64
	err := Retry(ctx, func() error {
		v, rev, err := t.Get(ctx, id)
		if err != nil {
			return err
		}
		if err := change(&v); err != nil {
			return &final{err}
		}
		op, err := t.PutOp(id, v)
		if err != nil {
			return err
		}
		all := append([]Cond{t.Cond(id, rev)}, conds...)
		revision, err = t.store.Txn(ctx, all, []Op{op})
		if err != nil {
			err = fmt.Errorf("%s %d: %w", t.kind, id, err)
			var conflict *Conflict
			if errors.As(err, &conflict) && conflict.Key != t.Key(id) {
				return &final{err}
			}
			return err
		}
		written = v
		return nil
	})
	if f, ok := err.(*final); ok {
		err = f.err
	}
	if err != nil {
		var none T
		return none, 0, err
	}
	return written, revision, nil
}

// final hides the class of an error from Retry.
type final struct{ err error }

func (f *final) Error() string { return f.err.Error() }
