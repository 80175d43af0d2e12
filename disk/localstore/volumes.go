package localstore

import (
	"context"

	"hayloft/disk"
)

// Layout of a volume's space.
type Layout string

// The layouts. A driver refuses what it has not (fault.Unsupported).
const (
	Thick Layout = "thick" // all of it is taken at once
	Thin  Layout = "thin"  // taken as it is written; counted whole against LS_MAX all the same
)

// Volumes is the space of a host given out in volumes: LS_MAD's provision and unprovision, of the hypervisor-side block cache's
// design (OpenNebula backlog #2827). Drivers: dummy (has none), file (files in the directory LS_PATH), lvm (logical volumes in
// the group LS_PATH). All methods are idempotent and safe for concurrent use, also by several processes on one volume group;
// what fails leaves nothing behind. A volume with our name that does not carry our tag is fault.Busy, named, and never touched.
// Errors: fault.OutOfSpace with what was needed and what is free; fault.Invalid, fault.NotFound, fault.Busy while a volume is open.
type Volumes interface {
	// Provision makes a volume that reads as zeros, or finds the one that is there: it is made longer when it is shorter
	// than v.Size, never shorter. Space is reserved before it is used.
	Provision(ctx context.Context, v VolumeSpec) (Volume, error)
	// Snapshot makes a copy-on-write volume with the content of another one of this store, which does not depend on it from then on
	// or keeps it from being unprovisioned. fault.Unsupported where there is none (thick volumes, files without reflinks).
	Snapshot(ctx context.Context, of string, v VolumeSpec) (Volume, error)
	// Rename gives a volume its final name in one step, for what must be whole when it has that; fault.Exists when both names
	// are there. Where only the new one is, it was renamed before, and is returned.
	Rename(ctx context.Context, from, to string) (Volume, error)
	// Unprovision removes a volume and returns its space; no error when there is none. fault.Busy when it is open.
	Unprovision(ctx context.Context, name string) error
	// Find gives a volume, fault.NotFound when there is none. It is active and its path usable when Find returns.
	Find(ctx context.Context, name string) (Volume, error)
	// List gives the volumes of this store, by name.
	List(ctx context.Context) ([]Volume, error)
	// Capacity has LS_MAX applied. Used is what volumes are counted for.
	Capacity(ctx context.Context) (disk.Capacity, error)
}

// VolumeSpec says what to provision. Names: lower case letters, digits, "." and "-", at most 100 bytes, such as "12.0" for disk 0 of machine 12,
// "base.HEX", "12.1.cache".
type VolumeSpec struct {
	Name string
	Size int64 // bytes; rounded up to what the driver can
	// UID and GID own the device or file: mode 0600. They are remembered, for Find after a reboot.
	UID, GID int
	// Raw is for who writes every byte up to Size, zeros too, before anybody else sees the volume, and then gives it its
	// final name by Rename, which makes it whole. Until then it may read as anything (its end beyond Size as zeros),
	// Snapshot refuses it (fault.WrongState), and Provision without Raw makes it anew.
	Raw bool
}

// Volume is one that is there.
type Volume struct {
	Name  string
	Path  string // of the block device or file, stable as long as the volume has this name
	Block bool   // a block device, else a file
	Size  int64  // bytes, as provisioned
	Taken int64  // bytes of the store that it takes up now; thick: Size
	Raw   bool   // provisioned as Raw and not renamed since
	// Zeros says that all of it reads as zeros for sure: the call that returns it has made it just now. A copy onto it may
	// skip zeros.
	Zeros bool
}
