// Package export is the last stage of the way of a disk: a Device, which is what caches make, is handed to
// hypervisors and to the kernel. The ways of handing it over are in the folders below.
package export

import "context"

// Device is a disk. Offsets and lengths are in bytes and lie within [0, Size()]; none needs to be aligned. All
// methods are safe for concurrent use and end soon after ctx does. Errors are classified by package fault:
// Permission for changing a read-only one, OutOfSpace, Unavailable (the repository; nothing is known), Corrupt,
// Unsupported. After an error of a change, the range holds old or new bytes in any mixture.
type Device interface {
	Size() int64
	ReadOnly() bool
	// ReadAt fills p, or fails.
	ReadAt(ctx context.Context, p []byte, offset int64) error
	// WriteAt writes all of p. With fua it is as durable as after a Flush when it returns.
	WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error
	// Flush makes everything that was acknowledged before the call durable.
	Flush(ctx context.Context) error
	// Zero makes a range read as zeros. Unless noHole, its space is given back.
	Zero(ctx context.Context, offset, length int64, z ZeroFlags) error
	// Prefetch brings a range here, where there is a cache; otherwise it does nothing.
	Prefetch(ctx context.Context, offset, length int64) error
	// Extents describes a range in order, without gaps, neighbours of the same kind joined where that is
	// cheap, until yield returns false.
	Extents(ctx context.Context, offset, length int64, yield func(Extent) bool) error
}

// ZeroFlags say how to make zeros.
type ZeroFlags struct {
	Trim   bool // the content is no longer wanted: give the space back
	NoHole bool // keep the space allocated
	Fast   bool // fail at once with fault.Unsupported when it is not quicker than writing zeros
	FUA    bool
}

// Extent is a range of one kind.
type Extent struct {
	Offset, Length int64
	Hole           bool // takes up no space of its own
	Zero           bool // reads as zeros
}

// Quick is what a Device has whose hits need no waiting: neither for a repository nor for long. Nothing is
// allocated. With done false nothing was read or written, and the method of Device is to be used.
type Quick interface {
	TryReadAt(p []byte, offset int64) (done bool, err error)
	// TryWriteAt is WriteAt without fua.
	TryWriteAt(p []byte, offset int64) (done bool, err error)
	// TryFile says where the range lies in a file of the operating system, for sendfile: its bytes stay right
	// for as long as a reply takes to send. The descriptor stays open as long as the Device.
	TryFile(offset int64, length int) (fd uintptr, at int64, ok bool)
}
