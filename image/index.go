package image

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/zeebo/blake3"

	"hayloft/cloud/fault"
)

// ChunkSize is the chunk size of new indexes, in bytes.
const ChunkSize = 64 << 10

// DigestSize is the length of one chunk's BLAKE3 digest in bytes.
const DigestSize = 32

const (
	minChunk = 4 << 10
	maxChunk = 16 << 20
)

// Index is the chunk index of an image: its length and the BLAKE3 digest of each chunk of it. The last chunk
// may be shorter. An Index is not changed once it is made, apart from set by the one who makes it.
type Index struct {
	chunkSize        int
	length           int64
	digests          []byte // DigestSize each
	zero, zeroOfLast [DigestSize]byte
}

// NewIndex makes the index of an all-zero image of length bytes.
func NewIndex(length int64, chunkSize int) (*Index, error) {
	if length < 0 {
		return nil, fault.Errorf(fault.Invalid, "chunk index: length %d", length)
	}
	if chunkSize < minChunk || chunkSize > maxChunk || chunkSize&(chunkSize-1) != 0 {
		return nil, fault.Errorf(fault.Invalid, "chunk index: chunk size %d is not a power of two from %d to %d", chunkSize, minChunk, maxChunk)
	}
	x := &Index{chunkSize: chunkSize, length: length}
	x.zero = blake3.Sum256(make([]byte, chunkSize))
	x.zeroOfLast = x.zero
	n := x.Chunks()
	if n > 0 {
		_, last := x.Range(n - 1)
		x.zeroOfLast = blake3.Sum256(make([]byte, last))
	}
	x.digests = bytes.Repeat(x.zero[:], n)
	if n > 0 {
		x.set(n-1, x.zeroOfLast)
	}
	return x, nil
}

// Length of the image in bytes.
func (x *Index) Length() int64 { return x.length }

// ChunkSize in bytes; the last chunk may be shorter.
func (x *Index) ChunkSize() int { return x.chunkSize }

// Chunks is how many there are.
func (x *Index) Chunks() int { return int((x.length + int64(x.chunkSize) - 1) / int64(x.chunkSize)) }

// Range is where chunk i is, in bytes.
func (x *Index) Range(i int) (offset int64, length int) {
	offset = int64(i) * int64(x.chunkSize)
	return offset, int(min(int64(x.chunkSize), x.length-offset))
}

// Chunk is the digest of chunk i; not to be written to.
func (x *Index) Chunk(i int) []byte { return x.digests[i*DigestSize : (i+1)*DigestSize] }

func (x *Index) set(i int, d [DigestSize]byte) { copy(x.digests[i*DigestSize:], d[:]) }

// IsZero reports whether chunk i holds nothing but zeros: its digest says so.
func (x *Index) IsZero(i int) bool {
	zero := &x.zero
	if i == x.Chunks()-1 {
		zero = &x.zeroOfLast
	}
	return bytes.Equal(x.Chunk(i), zero[:])
}

// DataBytes is the number of bytes in chunks that are not zero.
func (x *Index) DataBytes() int64 {
	var n int64
	for i := range x.Chunks() {
		if !x.IsZero(i) {
			_, length := x.Range(i)
			n += int64(length)
		}
	}
	return n
}

// VerifyChunk checks that data is chunk i; fault.Corrupt names the chunk.
func (x *Index) VerifyChunk(i int, data []byte) error {
	if i < 0 || i >= x.Chunks() {
		return fault.Errorf(fault.Invalid, "chunk %d: there are %d", i, x.Chunks())
	}
	offset, length := x.Range(i)
	if len(data) != length {
		return fault.Errorf(fault.Corrupt, "chunk %d at byte %d: %d bytes instead of %d", i, offset, len(data), length)
	}
	if sum := blake3.Sum256(data); !bytes.Equal(sum[:], x.Chunk(i)) {
		return fault.Errorf(fault.Corrupt, "chunk %d at byte %d does not match its digest", i, offset)
	}
	return nil
}

// Digest is the image's identity, "blake3:HEX" over header and chunk digests.
func (x *Index) Digest() string {
	sum := x.sum()
	return digestPrefix + hex.EncodeToString(sum[:])
}

const digestPrefix = "blake3:"

// ParseDigest checks the form of an image's digest and returns its hexadecimal part.
func ParseDigest(digest string) (string, error) {
	text, ok := strings.CutPrefix(digest, digestPrefix)
	raw, err := hex.DecodeString(text)
	if !ok || err != nil || len(raw) != DigestSize || text != strings.ToLower(text) {
		return "", fault.Errorf(fault.Invalid, "digest %q is not blake3: and %d lower-case hexadecimal digits", digest, 2*DigestSize)
	}
	return text, nil
}

// Reader reads the image from src front to back and hands on only what matches the index.
func (x *Index) Reader(src io.ReaderAt) io.Reader { return &verifyingReader{index: x, src: src} }

type verifyingReader struct {
	index *Index
	src   io.ReaderAt
	next  int
	chunk []byte
	rest  []byte
}

func (r *verifyingReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.next == r.index.Chunks() {
			return 0, io.EOF
		}
		offset, length := r.index.Range(r.next)
		if r.chunk == nil {
			r.chunk = make([]byte, r.index.chunkSize)
		}
		chunk := r.chunk[:length]
		if err := r.index.fetch(r.src, r.next, 1, chunk); err != nil {
			return 0, fmt.Errorf("at byte %d: %w", offset, err)
		}
		r.rest, r.next = chunk, r.next+1
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
