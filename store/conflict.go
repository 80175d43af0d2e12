package store

import (
	"fmt"

	"hayloft/cloud/fault"
)

// Conflict is in the chain of every fault.Busy that Txn returns: the first condition that did not hold,
// with the revision found instead.
type Conflict struct {
	Cond
	Found int64
}

func (c *Conflict) Error() string {
	switch {
	case c.Revision == 0:
		return fmt.Sprintf("key %q exists already, at revision %d", c.Key, c.Found)
	case c.Found == 0:
		return fmt.Sprintf("key %q is gone (was at revision %d)", c.Key, c.Revision)
	}
	return fmt.Sprintf("key %q changed meanwhile: revision %d, not %d", c.Key, c.Found, c.Revision)
}

// NewConflict makes the fault.Busy error for a condition that found another revision.
func NewConflict(c Cond, found int64) error {
	return fault.As(fault.Busy, &Conflict{c, found})
}
