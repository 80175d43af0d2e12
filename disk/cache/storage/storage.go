// Package storage is what the cache stands on: a directory of files, as little of it as caches and logs need, so
// that tests can put one below that loses power, tears writes and runs out of space (package faulty).
package storage

import "io"

// Dir is a directory that belongs to one cache. Names have no slashes. Safe for concurrent use.
// Errors are those of package os (errors.Is with fs.ErrNotExist, unix.ENOSPC, unix.EIO).
type Dir interface {
	// Open opens a file for reading and writing.
	Open(name string) (File, error)
	// Create makes an empty file, or cuts one that is there to nothing. The name is durable after Sync.
	Create(name string) (File, error)
	// Rename moves a file to another name, over what is there, at once. Durable after Sync.
	Rename(from, to string) error
	// Remove is done already when there is no such file. Durable after Sync.
	Remove(name string) error
	// Names lists the files.
	Names() ([]string, error)
	// Sync makes the names durable: until it returns, a power cut may undo any of the creations, renames and
	// removals since the last Sync, each by itself.
	Sync() error
}

// File is one open file. Offsets and lengths are in bytes. Safe for concurrent use; a reader that overlaps a
// writer sees old or new bytes in any mixture.
type File interface {
	// ReadAt reads zeros from holes, and io.EOF beyond the end.
	io.ReaderAt
	// WriteAt changes what a read gives at once, and what a power cut leaves only after Sync: until then a cut
	// keeps any subset of the 512-byte sectors written since the last Sync.
	io.WriterAt
	// Truncate sets the length; what is new reads as zeros. Durable after Sync.
	Truncate(size int64) error
	// Punch makes a range read as zeros and gives its space back; the length stays. Durable after Sync, like a write.
	Punch(offset, length int64) error
	// Sync makes everything that was written before the call durable.
	Sync() error
	Size() (int64, error)
	// Close does not sync.
	Close() error
}

// Descriptor is what a File of the operating system has: for sendfile and for sharing blocks (FICLONERANGE).
type Descriptor interface {
	Fd() uintptr
}
