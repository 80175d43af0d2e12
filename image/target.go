package image

import (
	"context"
	"io"
)

// Writer is one new object of a repository while it is written. Bytes never written read as zero. WriteAt may
// be called by several goroutines for different ranges. Exactly one of Commit and Abort ends it; Abort after
// Commit does nothing.
type Writer interface {
	io.WriterAt
	io.ReaderAt
	// SetSize sets the length of the object in bytes.
	SetSize(size int64) error
	// Commit makes the object durable and visible under its name, at once and whole: fault.Exists when the name
	// was taken meanwhile, fault.OutOfSpace.
	Commit(ctx context.Context) error
	// Abort leaves nothing behind.
	Abort() error
}

// Local is what a Writer or a source has besides when its bytes are a file on this host: the place of it.
type Local interface{ LocalPath() string }

// Target is the part of a repository that an import writes to.
type Target interface {
	// Create starts a new object: fault.Exists when there is one, fault.Busy while another writer has the name.
	Create(ctx context.Context, name string) (Writer, error)
	// Delete removes an object: fault.NotFound when there is none.
	Delete(ctx context.Context, name string) error
}
