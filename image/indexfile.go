package image

import (
	"encoding/binary"
	"io"

	"github.com/zeebo/blake3"

	"hayloft/cloud/fault"
)

// The index file: a header of 64 bytes, the chunk digests in order, and the BLAKE3 digest of all before it,
// which is the image's digest. Numbers are big-endian.
//
//	0 magic "HAYLIDX\n"  8 version  12 chunk size  16 length  24 number of chunks  32 zeros
const (
	indexMagic   = "HAYLIDX\n"
	indexVersion = 1
	indexHeader  = 64
)

func (x *Index) header() []byte {
	h := make([]byte, indexHeader)
	copy(h, indexMagic)
	binary.BigEndian.PutUint32(h[8:], indexVersion)
	binary.BigEndian.PutUint32(h[12:], uint32(x.chunkSize))
	binary.BigEndian.PutUint64(h[16:], uint64(x.length))
	binary.BigEndian.PutUint64(h[24:], uint64(x.Chunks()))
	return h
}

func (x *Index) sum() (sum [DigestSize]byte) {
	h := blake3.New()
	h.Write(x.header())
	h.Write(x.digests)
	h.Sum(sum[:0])
	return sum
}

// Marshal gives the index file.
func (x *Index) Marshal() []byte {
	sum := x.sum()
	b := append(x.header(), x.digests...)
	return append(b, sum[:]...)
}

// UnmarshalIndex reads an index file. All errors but those of the version are fault.Corrupt.
func UnmarshalIndex(b []byte) (*Index, error) {
	if len(b) < indexHeader {
		if len(b) < len(indexMagic) || string(b[:len(indexMagic)]) == indexMagic {
			return nil, fault.Errorf(fault.Corrupt, "chunk index: truncated: %d bytes, the header alone has %d", len(b), indexHeader)
		}
	}
	if string(b[:len(indexMagic)]) != indexMagic {
		return nil, fault.Errorf(fault.Corrupt, "chunk index: wrong magic %q", b[:len(indexMagic)])
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != indexVersion {
		return nil, fault.Errorf(fault.Unsupported, "chunk index: version %d, this program reads %d", v, indexVersion)
	}
	chunkSize := binary.BigEndian.Uint32(b[12:])
	length := binary.BigEndian.Uint64(b[16:])
	count := binary.BigEndian.Uint64(b[24:])
	if chunkSize < minChunk || chunkSize > maxChunk || chunkSize&(chunkSize-1) != 0 {
		return nil, fault.Errorf(fault.Corrupt, "chunk index: wrong chunk size %d", chunkSize)
	}
	if length > 1<<62 || count != (length+uint64(chunkSize)-1)/uint64(chunkSize) {
		return nil, fault.Errorf(fault.Corrupt, "chunk index: wrong length: %d chunks of %d bytes for %d bytes", count, chunkSize, length)
	}
	for _, c := range b[32:indexHeader] {
		if c != 0 {
			return nil, fault.Errorf(fault.Corrupt, "chunk index: unknown header field")
		}
	}
	have := uint64(len(b))
	want := indexHeader + (count+1)*DigestSize
	switch {
	case have < want:
		return nil, fault.Errorf(fault.Corrupt, "chunk index: truncated: %d bytes of %d", have, want)
	case have > want:
		return nil, fault.Errorf(fault.Corrupt, "chunk index: wrong length: %d bytes after its end", have-want)
	}
	x := &Index{chunkSize: int(chunkSize), length: int64(length), digests: b[indexHeader : want-DigestSize]}
	x.zero = blake3.Sum256(make([]byte, chunkSize))
	x.zeroOfLast = x.zero
	if count > 0 {
		_, last := x.Range(int(count) - 1)
		x.zeroOfLast = blake3.Sum256(make([]byte, last))
	}
	if sum := x.sum(); string(sum[:]) != string(b[want-DigestSize:]) {
		return nil, fault.Errorf(fault.Corrupt, "chunk index: checksum does not match")
	}
	return x, nil
}

// maxIndexFile bounds what is read into memory: the index of 1 TiB in 4 KiB chunks.
const maxIndexFile = 8 << 30

// ReadIndex reads an index file of size bytes and checks that it is the one of digest, when that is not "".
func ReadIndex(r io.ReaderAt, size int64, digest string) (*Index, error) {
	if size > maxIndexFile {
		return nil, fault.Errorf(fault.Corrupt, "chunk index: %d bytes are too many", size)
	}
	b := make([]byte, size)
	if n, err := r.ReadAt(b, 0); int64(n) < size {
		if err == io.EOF {
			return nil, fault.Errorf(fault.Corrupt, "chunk index: truncated while it was read")
		}
		return nil, err
	}
	x, err := UnmarshalIndex(b)
	if err != nil {
		return nil, err
	}
	if got := x.Digest(); digest != "" && got != digest {
		return nil, fault.Errorf(fault.Corrupt, "chunk index: digest is %s instead of %s", got, digest)
	}
	return x, nil
}
