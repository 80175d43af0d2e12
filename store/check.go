package store

import (
	"strings"

	"hayloft/cloud/fault"
)

// ItemOverhead is what each comparison and each operation counts towards MaxTxnSize besides its key and
// value, in bytes: the room that the drivers' own prefix and encoding need. A comparison's key counts
// twice, as drivers ask in the same request what was found instead.
const ItemOverhead = 192

// MaxKeySize is the longest key, in bytes.
const MaxKeySize = 4096

// ElectionPrefix is where drivers keep leaderships: ElectionPrefix + name + "/" + holder. Transactions
// may compare these keys (Fence) but not write them.
const ElectionPrefix = "election/"

// Check refuses, with fault.Invalid, a transaction that some driver could not take: too many or too large
// items, an empty key, a key named by two operations, a write below ElectionPrefix. Drivers call it first.
func Check(conds []Cond, ops []Op) error {
	if len(conds) > MaxOps || len(ops) > MaxOps {
		return fault.Errorf(fault.Invalid, "transaction of %d conditions and %d operations: at most %d of each",
			len(conds), len(ops), MaxOps)
	}
	size := 0
	for _, c := range conds {
		if err := CheckKey(c.Key); err != nil {
			return err
		}
		if c.Revision < 0 {
			return fault.Errorf(fault.Invalid, "condition on key %q: negative revision %d", c.Key, c.Revision)
		}
		size += 2*len(c.Key) + ItemOverhead
	}
	seen := make(map[string]bool, len(ops))
	for _, o := range ops {
		if err := checkOp(o); err != nil {
			return err
		}
		if seen[o.Key] {
			return fault.Errorf(fault.Invalid, "transaction writes key %q twice", o.Key)
		}
		seen[o.Key] = true
		size += len(o.Key) + len(o.Value) + ItemOverhead
	}
	if size > MaxTxnSize {
		return fault.Errorf(fault.Invalid, "transaction of %d bytes: at most %d", size, MaxTxnSize)
	}
	return nil
}

func checkOp(o Op) error {
	if err := CheckKey(o.Key); err != nil {
		return err
	}
	if strings.HasPrefix(o.Key, ElectionPrefix) {
		return fault.Errorf(fault.Invalid, "key %q is written by elections only", o.Key)
	}
	if len(o.Value) > MaxValueSize {
		return fault.Errorf(fault.Invalid, "value of key %q is %d bytes: at most %d", o.Key, len(o.Value), MaxValueSize)
	}
	if o.Delete && len(o.Value) > 0 {
		return fault.Errorf(fault.Invalid, "deletion of key %q carries a value", o.Key)
	}
	return nil
}

// CheckKey refuses an empty or too long key.
func CheckKey(key string) error {
	if key == "" {
		return fault.Errorf(fault.Invalid, "empty key")
	}
	if len(key) > MaxKeySize {
		return fault.Errorf(fault.Invalid, "key %.40q... is %d bytes: at most %d", key, len(key), MaxKeySize)
	}
	return nil
}
