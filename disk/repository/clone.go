package repository

import "context"

// CloneKind says how the storage made a clone.
type CloneKind string

// The kinds of clones.
const (
	Copied    CloneKind = "copy"      // all bytes were copied, by the storage where it can
	Reflinked CloneKind = "reflink"   // a file that shares blocks until they are written; depends on nobody
	ThinClone CloneKind = "lvm-thin"  // a thin snapshot of a thin volume; depends on nobody
	RBDClone  CloneKind = "rbd-clone" // copy-on-write image on a protected snapshot, which must stay
	// LVMSnapshot is a copy-on-write snapshot of a thick volume, which must stay. It has room for changes of all bytes.
	LVMSnapshot CloneKind = "lvm-snapshot"
)

// Depends reports whether a clone of this kind needs its parent.
func (k CloneKind) Depends() bool { return k == RBDClone || k == LVMSnapshot }

// Cloner is what a Repository has that can begin an object with the content of another without moving it through this
// host. Clones of clones work to any depth. Delete of an object that clones depend on is fault.Busy and names them.
type Cloner interface {
	// CreateFrom is Create with the content and size of from, which must not be in somebody's possession as a persistent
	// image with undrained writes (fault.Busy). What is written before Commit is the clone's own; SetSize only makes it
	// longer, after which it may depend on nobody whatever its kind: see Parent. Nothing of from changes, whatever happens.
	CreateFrom(ctx context.Context, from, name string) (Writer, CloneKind, error)
	// Flatten makes a clone independent of its parent; it does nothing for one that is. The object can be read meanwhile.
	Flatten(ctx context.Context, name string) error
	// Parent is the object that name depends on, "" for none.
	Parent(ctx context.Context, name string) (string, error)
}

// Depender is what a Cloner has whose clones can depend on their parent.
type Depender interface {
	// DependentKind is that of the clones that do.
	DependentKind() CloneKind
}

// Copier is what a Cloner has whose dependent clones make writes to their parent slow: for a parent that is persistent.
type Copier interface {
	// CopyFrom is CreateFrom of a clone that depends on nobody.
	CopyFrom(ctx context.Context, from, name string) (Writer, CloneKind, error)
}
