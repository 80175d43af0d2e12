// Package repository is the first stage of the way of a disk: where images live, and how one is opened as a
// source for random-access reading. Drivers are in the folders below; Open picks one.
package repository

import (
	"context"
	"io"
	"os"
	"time"

	"hayloft/disk"
	"hayloft/image"
)

// Repository is one datastore, reached from this host. Names are slash-separated, see CheckName. All methods
// are safe for concurrent use, and end when ctx does even if the storage hangs. Errors name repository and object
// and are classified: fault.Unavailable when the storage cannot be reached (nothing is known about the object
// then), fault.NotFound, fault.Exists, fault.Busy, fault.OutOfSpace, fault.Permission, fault.Invalid for names.
type Repository interface {
	// Create starts a new object, which is invisible until Commit.
	Create(ctx context.Context, name string) (Writer, error)
	// Open opens an object for reading. ctx bounds the opening and every read from the source.
	Open(ctx context.Context, name string) (Source, error)
	Stat(ctx context.Context, name string) (Info, error)
	// Delete removes an object; fault.NotFound when there is none.
	Delete(ctx context.Context, name string) error
	// List gives the objects whose name starts with prefix, "" for all, sorted by name. Unfinished ones are not there.
	List(ctx context.Context, prefix string) ([]Info, error)
	Capacity(ctx context.Context) (disk.Capacity, error)
}

// Writer is an object being written.
type Writer = image.Writer

// Local is what a Writer, Source or Owned has when its bytes are a file on this host.
type Local = image.Local

// Info describes an object.
type Info struct {
	Name     string
	Size     int64 // bytes
	Modified time.Time
}

// Source is one object opened for reading. ReadAt is safe for concurrent use. After an error of class
// fault.Unavailable the buffer of that ReadAt may still be written to: drop it.
type Source interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Extents is what a Source has that knows its holes.
type Extents interface {
	// NextData is the first range [start, end) with data at or after offset; io.EOF when there is none.
	NextData(offset int64) (start, end int64, err error)
}

// Reflinker is what a Source has that can share its blocks with a local file; fault.Unsupported when these two cannot.
type Reflinker interface {
	CloneTo(dst *os.File) error
}

// Owner is the one user of a persistent image.
type Owner struct {
	Host    string `json:"host"`
	Machine int    `json:"machine"`
}

// Ownable is what a Repository has whose objects can be persistent images: one machine's, for the time.
type Ownable interface {
	// Own hands the object to owner until Disown. Where a host can use it in place, it is made ready for that, and path
	// says where: a file, or a block device of this host's kernel (an LUN logged into, an RBD mapped), writable for uid and
	// gid alone. path is "" where it can only be reached through this driver (see Writable). fault.Busy names the owner
	// when there is another one. Owning again is allowed, and after a restart of the host makes the device anew.
	Own(ctx context.Context, name string, owner Owner, uid, gid int) (path string, err error)
	// Disown takes the object back with the ownership it had; it does nothing when owner does not own it.
	Disown(ctx context.Context, name string, owner Owner) error
}

// Linker is what a Repository has that can take in and hand out files of the same file system without copying:
// a second name for the same bytes. fault.Unsupported when the file systems differ.
type Linker interface {
	LinkIn(ctx context.Context, path, name string) error
	LinkOut(ctx context.Context, name, path string) error
}

// Sweeper is what a Repository has whose writers can leave something unfinished when they die.
type Sweeper interface {
	// Sweep removes what dead writers left of objects whose name starts with prefix. Those that live are not touched.
	Sweep(ctx context.Context, prefix string) error
}
