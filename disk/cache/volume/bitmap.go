package volume

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	"hayloft/disk/cache/storage"
)

// A bitmap's file is blocks of 512 bytes, which storage writes whole or not at all: 0 crc32c of the rest, 4 generation,
// 8 63 words of 64 bits. Numbers are little-endian.
const (
	mapBlock     = 512
	wordsOfBlock = (mapBlock - 8) / 8
	bitsOfBlock  = wordsOfBlock * 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// bitmap is one bit a chunk, in memory and the same on file. Readers take no lock.
type bitmap struct {
	file       storage.File
	generation uint32
	size       int64 // bits
	words      []atomic.Uint64
	count      atomic.Int64 // bits set

	mu    sync.Mutex // of those who change it
	block [mapBlock]byte
	lost  bool // there is no file any more
	hold  holdBack

	// unsure: writing to the file failed, so it may be as before or as it was to become. Memory is right.
	unsure atomic.Bool
}

func newBitmap(file storage.File, generation uint32, size int64) *bitmap {
	blocks := (size + bitsOfBlock - 1) / bitsOfBlock
	return &bitmap{file: file, generation: generation, size: size, words: make([]atomic.Uint64, blocks*wordsOfBlock)}
}

// load reads the file. Blocks that are wrong, missing or of another generation are empty, or full when bad says so.
// It reports whether all were right.
func (m *bitmap) load(bad bool) (right bool, err error) {
	right = true
	b := make([]byte, len(m.words)/wordsOfBlock*mapBlock)
	if n, err := m.file.ReadAt(b, 0); n < len(b) {
		if err != nil && err != io.EOF {
			return false, err
		}
		clear(b[n:])
	}
	for i := 0; i < len(b); i += mapBlock {
		words := m.words[i/mapBlock*wordsOfBlock:][:wordsOfBlock]
		ok := parseMapBlock(b[i:i+mapBlock], m.generation, func(w int, v uint64) { words[w].Store(v) })
		right = right && ok
		if !ok && bad {
			for w := range words {
				words[w].Store(^uint64(0))
			}
		}
	}
	m.trim()
	return right, nil
}

// parseMapBlock hands out the words of a block that is right.
func parseMapBlock(b []byte, generation uint32, yield func(word int, v uint64)) bool {
	if binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:mapBlock], castagnoli) || binary.LittleEndian.Uint32(b[4:]) != generation {
		return false
	}
	for w := range wordsOfBlock {
		yield(w, binary.LittleEndian.Uint64(b[8+8*w:]))
	}
	return true
}

// trim clears what lies beyond the size, and counts.
func (m *bitmap) trim() {
	var n int64
	for w := range m.words {
		v := m.words[w].Load()
		if rest := m.size - int64(w)*64; rest < 64 {
			v &= 1<<max(rest, 0) - 1
			m.words[w].Store(v)
		}
		n += int64(bits.OnesCount64(v))
	}
	m.count.Store(n)
}

// writeAll writes every block.
func (m *bitmap) writeAll() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rewrite()
}

func (m *bitmap) rewrite() error {
	for block := range int64(len(m.words) / wordsOfBlock) {
		m.encode(block)
		if err := m.writeBlock(block); err != nil {
			return err
		}
	}
	return nil
}

func (m *bitmap) has(i int64) bool { return m.words[i/64].Load()&(1<<(i%64)) != 0 }

// hasAll reports whether all of [from, to) are set.
func (m *bitmap) hasAll(from, to int64) bool {
	for i := from; i < to; {
		mask, next := wordMask(i, to)
		if m.words[i/64].Load()&mask != mask {
			return false
		}
		i = next
	}
	return true
}

// filed reports whether all of [from, to) are set, on file too for certain.
func (m *bitmap) filed(from, to int64) bool { return m.hasAll(from, to) && !m.unsure.Load() }

// next is the first bit at or after i that is set, or the size.
func (m *bitmap) next(i int64) int64 {
	for i < m.size {
		if v := m.words[i/64].Load() >> (i % 64); v != 0 {
			return i + int64(bits.TrailingZeros64(v))
		}
		i = (i/64 + 1) * 64
	}
	return m.size
}

// wordMask is the bits of [from, to) in from's word, and where the next word starts.
func wordMask(from, to int64) (mask uint64, next int64) {
	next = min((from/64+1)*64, to)
	mask = ^uint64(0) << (from % 64)
	if n := next - from/64*64; n < 64 {
		mask &= 1<<n - 1
	}
	return mask, next
}

// set sets the bits of [from, to): on file, then in memory. After an error the file is not to be believed any more.
func (m *bitmap) set(from, to int64) error {
	_, err := m.change(from, to, true)
	return err
}

// clear clears the bits of [from, to) and reports how many were set.
func (m *bitmap) clear(from, to int64) (int64, error) { return m.change(from, to, false) }

func (m *bitmap) change(from, to int64, on bool) (changed int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unsure.Load() {
		if err := m.rewrite(); err != nil {
			return 0, err
		}
		m.unsure.Store(false)
	}
	for from < to {
		end := min((from/bitsOfBlock+1)*bitsOfBlock, to)
		n, err := m.changeBlock(from, end, on)
		changed += n
		if err != nil {
			return changed, err
		}
		from = end
	}
	return changed, nil
}

func (m *bitmap) changeBlock(from, to int64, on bool) (int64, error) {
	block := from / bitsOfBlock
	m.encode(block)
	changed, filed := 0, false
	for i := from; i < to; {
		mask, next := wordMask(i, to)
		old := m.words[i/64].Load()
		now := old | mask
		if !on {
			now = old &^ mask
		}
		changed += bits.OnesCount64(now ^ old)
		filed = m.put(block, i/64, now) || filed
		i = next
	}
	if filed {
		if err := m.writeBlock(block); err != nil {
			return 0, err
		}
	}
	for i := from; i < to && changed > 0; {
		mask, next := wordMask(i, to)
		if on {
			m.words[i/64].Or(mask)
		} else {
			m.words[i/64].And(^mask)
		}
		i = next
	}
	if on {
		m.count.Add(int64(changed))
	} else {
		m.count.Add(-int64(changed))
	}
	return int64(changed), nil
}

// put puts a word into m.block, without what is held back, and reports whether that changed it.
func (m *bitmap) put(block, word int64, v uint64) bool {
	at := m.block[8+8*(word-block*wordsOfBlock):]
	v &^= m.heldBack(word)
	changed := binary.LittleEndian.Uint64(at) != v
	binary.LittleEndian.PutUint64(at, v)
	return changed
}

// encode puts the words of a block into m.block.
func (m *bitmap) encode(block int64) {
	binary.LittleEndian.PutUint32(m.block[4:], m.generation)
	for w := block * wordsOfBlock; w < (block+1)*wordsOfBlock; w++ {
		m.put(block, w, m.words[w].Load())
	}
}

// writeBlock writes m.block.
func (m *bitmap) writeBlock(block int64) error {
	if m.lost {
		return nil
	}
	binary.LittleEndian.PutUint32(m.block[:], crc32.Checksum(m.block[4:], castagnoli))
	_, err := m.file.WriteAt(m.block[:], block*mapBlock)
	if err != nil {
		m.unsure.Store(true)
	}
	return err
}

// forgetFile has the bits go on in memory alone.
func (m *bitmap) forgetFile() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = true
}

func (m *bitmap) hasNoFile() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lost
}

func (m *bitmap) sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost {
		return nil
	}
	return m.file.Sync()
}

func (m *bitmap) closer() io.Closer { return m.file }
