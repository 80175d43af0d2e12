// Package image knows what an image is: its formats, its chunk index and digest, and how it is taken in from
// the outside so that nothing broken or hostile gets into a repository.
package image

import (
	"time"

	"hayloft/internal/command"
)

// Type is what an image is for, in OpenNebula's words.
type Type string

// The types of images.
const (
	OS        Type = "OS"
	CDROM     Type = "CDROM"
	Datablock Type = "DATABLOCK"
	Kernel    Type = "KERNEL"
	Ramdisk   Type = "RAMDISK"
	Context   Type = "CONTEXT"
)

// ImportOptions say what is imported and where it goes.
type ImportOptions struct {
	// Source is a path on this host, or a file://, http:// or https:// URL.
	Source string
	Type   Type
	// Format is a hint, "" to detect by content. "raw" takes the bytes as they are; any other hint that the
	// content contradicts is refused (fault.Invalid).
	Format Format
	// ExpectedDigest of the source file as it is, before any conversion: "sha256:HEX", "sha1:HEX", "md5:HEX" or
	// "blake3:HEX" (the plain hash of the bytes, or for raw the digest that a former import returned).
	ExpectedDigest string
	To             Target
	Name           string // of the object in the repository, see CheckName
	Runner         command.Runner
	Limits         Limits
	// Report is called now and then with bytes done and bytes in all (0: unknown); it may be nil.
	Report func(done, total int64)
}

// CreateOptions describe an empty image.
type CreateOptions struct {
	Size int64 // bytes
	To   Target
	Name string
}

// Limits of what is taken in; zero fields mean the defaults.
type Limits struct {
	Size    int64         // bytes of a disk, or of all members of an archive unpacked; default 16 TiB
	Members int           // of an archive; default 4 million
	Stall   time.Duration // how long a URL may send nothing; default 1 minute
}

// Info is what came out of an import.
type Info struct {
	Format      Format // as stored: raw, tar, tar.gz, tar.zst or squashfs
	Size        int64  // bytes a machine sees: of the disk, or of an archive's members unpacked
	ObjectSize  int64  // length of the stored object in bytes; raw: equal to Size
	StoredBytes int64  // bytes of the object that are not holes
	Digest      string // "blake3:HEX" of the chunk index
}

// IndexName is the name of the object that holds the chunk index of object name.
func IndexName(name string) string { return name + IndexSuffix }

// IndexSuffix ends the names of chunk indexes.
const IndexSuffix = ".idx"
