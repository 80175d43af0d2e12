package repository

import (
	"context"
	"io"

	"hayloft/cloud/fault"
)

// Target is a persistent image opened for its one user, for reading and writing. Offsets in bytes. Safe for
// concurrent use. Errors are classified as those of Repository.
type Target interface {
	Source
	io.WriterAt
	// Truncate makes it longer; never shorter.
	Truncate(size int64) error
	// Discard makes a range read as zeros and gives its space back where the storage can.
	Discard(offset, length int64) error
	// Sync makes what was written before the call durable. See NotBegun.
	Sync() error
}

// NotBegun wraps the error of a Sync that the storage was not even asked for, because it could not be reached: nothing
// is lost by it, and the Sync can be asked for again. After any other error of a Sync it cannot: what was lost, a
// second one does not bring back.
type NotBegun struct{ Err error }

func (e *NotBegun) Error() string { return e.Err.Error() }

// Unwrap gives the cause, which has the class.
func (e *NotBegun) Unwrap() error { return e.Err }

// Booted is what a Target has whose storage is another host, which loses what was not synced when it is started anew.
type Booted interface {
	// Boot tells one run of that host's operating system from the next.
	Boot() string
}

// Mark is what a repository keeps beside a persistent image in use.
type Mark struct {
	Owner
	// Generation grows each time that the image is taken by somebody: an owner whose generation is over must not
	// write any more.
	Generation uint64 `json:"generation"`
	// Undrained says that the owner's host has writes which the image has not.
	Undrained bool `json:"undrained,omitempty"`
}

// Busy is the error, of class fault.Busy, for everybody but the owner: who that is, and what to do when it never comes back.
func (m Mark) Busy() error {
	if m.Undrained {
		return fault.Errorf(fault.Busy, "persistent, machine %d on host %s (generation %d) has writes that are not here yet: let that host drain them, "+
			"or give them up with: hayloft image release IMAGE --accept-stale", m.Machine, m.Host, m.Generation)
	}
	return fault.Errorf(fault.Busy, "persistent, in use by machine %d on host %s; if that never comes back: hayloft image release IMAGE", m.Machine, m.Host)
}

// Writable is what a Repository has whose objects can be persistent images behind a cache.
type Writable interface {
	Ownable
	// OpenTarget opens an object that owner owns; fault.Busy names the owner when it is another.
	OpenTarget(ctx context.Context, name string, owner Owner) (Target, Mark, error)
	// Marked reads the mark; fault.NotFound when nobody owns the object.
	Marked(ctx context.Context, name string) (Mark, error)
	// SetUndrained changes the mark durably. fault.Busy when owner and generation are not those of the mark.
	SetUndrained(ctx context.Context, name string, owner Owner, generation uint64, undrained bool) error
	// Break takes the object from its owner, whoever that is, and gives it back the ownership it had: for owners that
	// never come back. fault.Busy when writes are undrained, unless acceptStale.
	Break(ctx context.Context, name string, acceptStale bool) error
}
