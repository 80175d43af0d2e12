package base

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"slices"

	"hayloft/cloud/fault"
	"hayloft/disk/cache/storage"
	"hayloft/image"
)

// The presence map says which chunks of the data file are right. It has a header of one block and then blocks of
// bits. A block is one sector, so that a power cut leaves the old or the new one; one that is torn or rotten all the
// same does not match its checksum and claims nothing, as does one never written. Numbers are big-endian.
//
//	header  0 magic "HAYLMAP\n"  8 version  12 chunk size  16 length  24 number of chunks  32 image digest
//	        64 zeros  508 CRC-32C of all before it
//	block   0 CRC-32C of the header's checksum, the number of the block and what follows  4 zeros  8 bits of 4,032
//	        chunks, 64 to a number, the lowest bit first
const (
	mapMagic   = "HAYLMAP\n"
	mapVersion = 1
	blockSize  = 512
	blockWords = (blockSize - 8) / 8
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // made once by package crc32

// mapHeader is the header for the image of x.
func mapHeader(x *image.Index) ([]byte, error) {
	text, err := image.ParseDigest(x.Digest())
	if err != nil {
		return nil, err
	}
	digest, err := hex.DecodeString(text)
	if err != nil {
		return nil, err
	}
	h := make([]byte, blockSize)
	copy(h, mapMagic)
	binary.BigEndian.PutUint32(h[8:], mapVersion)
	binary.BigEndian.PutUint32(h[12:], uint32(x.ChunkSize()))
	binary.BigEndian.PutUint64(h[16:], uint64(x.Length()))
	binary.BigEndian.PutUint64(h[24:], uint64(x.Chunks()))
	copy(h[32:], digest)
	binary.BigEndian.PutUint32(h[blockSize-4:], crc32.Checksum(h[:blockSize-4], castagnoli()))
	return h, nil
}

// presence is the map in its file, and what the file says. It is not safe for concurrent use.
type presence struct {
	file   storage.File
	header []byte
	chunks int
	saved  []uint64
	dirty  map[int]struct{} // blocks whose place in the file is not, or may not be, what saved has
	block  [blockSize]byte
}

func newPresence(header []byte, chunks int) *presence {
	return &presence{header: header, chunks: chunks, saved: make([]uint64, (chunks+63)/64), dirty: map[int]struct{}{}}
}

func (m *presence) blocks() int { return (len(m.saved) + blockWords - 1) / blockWords }

func (m *presence) words(block int) []uint64 {
	return m.saved[block*blockWords : min(len(m.saved), (block+1)*blockWords)]
}

func (m *presence) has(i int) bool { return m.saved[i>>6]&(1<<(i&63)) != 0 }

func (m *presence) set(i int) {
	m.saved[i>>6] |= 1 << (i & 63)
	m.dirty[(i>>6)/blockWords] = struct{}{}
}

func (m *presence) clear(i int) {
	m.saved[i>>6] &^= 1 << (i & 63)
	m.dirty[(i>>6)/blockWords] = struct{}{}
}

// encode writes a block of the map into b.
func (m *presence) encode(block int, b []byte) {
	clear(b)
	for k, word := range m.words(block) {
		binary.BigEndian.PutUint64(b[8+8*k:], word)
	}
	binary.BigEndian.PutUint32(b, m.sum(block, b))
}

func (m *presence) sum(block int, b []byte) uint32 {
	var seed [8]byte
	copy(seed[:], m.header[blockSize-4:])
	binary.BigEndian.PutUint32(seed[4:], uint32(block))
	return crc32.Update(crc32.Checksum(seed[:], castagnoli()), castagnoli(), b[4:])
}

// decode takes the bits of a block, or none: ok is false when it is neither right nor one that was never written.
func (m *presence) decode(block int, b []byte) (ok bool) {
	if binary.BigEndian.Uint32(b) != m.sum(block, b) {
		return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
	}
	words := m.words(block)
	for k := range blockWords {
		word := binary.BigEndian.Uint64(b[8+8*k:])
		chunk := (block*blockWords + k) * 64 // of the lowest bit
		if beyond := chunk + 64 - m.chunks; beyond > 0 && word>>(64-min(beyond, 64)) != 0 {
			clear(words)
			return false
		}
		if k < len(words) {
			words[k] = word
		}
	}
	return true
}

// load reads the map from its file: fault.Corrupt when that is not a map of this image. lost counts blocks that
// are damaged or missing.
func (m *presence) load(f storage.File) (lost int, err error) {
	head := make([]byte, blockSize)
	if n, err := f.ReadAt(head, 0); n < blockSize && err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if string(head) != string(m.header) {
		return 0, fault.Errorf(fault.Corrupt, "the presence map is not one of this image")
	}
	part := make([]byte, min(128, max(1, m.blocks()))*blockSize)
	for block := 0; block < m.blocks(); {
		want := part[:min(len(part), (m.blocks()-block)*blockSize)]
		clear(want)
		n, err := f.ReadAt(want, int64(block+1)*blockSize)
		if n < len(want) && err != nil {
			clear(want[n:])
			if !errors.Is(err, io.EOF) && len(want) > blockSize { // one sector at a time
				part = part[:blockSize]
				continue
			}
		}
		for ; len(want) > 0; want, block = want[blockSize:], block+1 {
			if n < blockSize || !m.decode(block, want[:blockSize]) {
				lost++
				m.dirty[block] = struct{}{}
			}
			n -= blockSize
		}
	}
	m.file = f
	return lost, nil
}

// create makes f, which is empty, a map that claims nothing, durably.
func (m *presence) create(f storage.File) error {
	if _, err := f.WriteAt(m.header, 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(m.blocks()+1) * blockSize); err != nil {
		return err
	}
	m.file = f
	return f.Sync()
}

// write makes the file durably say what the map says. After an error it says for each block what it said before
// or what the map says.
func (m *presence) write() error {
	if len(m.dirty) == 0 {
		return nil
	}
	for block := range m.dirty {
		m.encode(block, m.block[:])
		if _, err := m.file.WriteAt(m.block[:], int64(block+1)*blockSize); err != nil {
			return err
		}
	}
	if err := m.file.Sync(); err != nil {
		return err
	}
	clear(m.dirty)
	return nil
}
