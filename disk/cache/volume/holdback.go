package volume

import "iter"

// holdBack is which bits of a map stay clear on file though they may be set in memory: those of chunks that hold
// what the source has not synced. Guarded by the bitmap's mutex.
type holdBack struct {
	now     []uint64 // since the sync that is under way began, or the last one
	syncing []uint64 // before that
	blocks  []bool   // that may have some
}

func (m *bitmap) heldBack(word int64) uint64 {
	if m.hold.now == nil {
		return 0
	}
	return m.hold.now[word] | m.hold.syncing[word]
}

func (m *bitmap) needHold() *holdBack {
	h := &m.hold
	if h.now == nil {
		h.now, h.syncing = make([]uint64, len(m.words)), make([]uint64, len(m.words))
		h.blocks = make([]bool, len(m.words)/wordsOfBlock)
	}
	return h
}

// holdBack keeps the bits of [from, to), which are clear, off the file until the next sync that begins from now.
func (m *bitmap) holdBack(from, to int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.needHold()
	for i := from; i < to; {
		mask, next := wordMask(i, to)
		h.now[i/64] |= mask
		h.blocks[i/bitsOfBlock] = true
		i = next
	}
}

// holdAbsent holds back all that are clear.
func (m *bitmap) holdAbsent() {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.needHold()
	for w := range h.now {
		h.now[w] |= ^m.words[w].Load()
		h.blocks[w/wordsOfBlock] = true
	}
}

// held reports whether some may be held back.
func (m *bitmap) held() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, some := range m.hold.blocks {
		if some {
			return true
		}
	}
	return false
}

// beginSync: what is held back by now is what the sync is about.
func (m *bitmap) beginSync() {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &m.hold
	for b, some := range h.blocks {
		for w := b * wordsOfBlock; some && w < (b+1)*wordsOfBlock; w++ {
			h.syncing[w] |= h.now[w]
			h.now[w] = 0
		}
	}
}

// endSync puts on file what the source has synced.
func (m *bitmap) endSync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &m.hold
	for b, some := range h.blocks {
		if !some {
			continue
		}
		block := int64(b)
		m.encode(block)
		filed, left := false, false
		for w := block * wordsOfBlock; w < (block+1)*wordsOfBlock; w++ {
			h.syncing[w] = 0
			left = left || h.now[w] != 0
			filed = m.put(block, w, m.words[w].Load()) || filed
		}
		h.blocks[b] = left
		if filed {
			if err := m.writeBlock(block); err != nil {
				return err
			}
		}
	}
	return nil
}

// doubtful are the chunks that are here and may not be so in the source, after a sync that failed. They are held
// back until one succeeds.
func (m *bitmap) doubtful() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for i := m.next(0); i < m.size; i = m.next(i + 1) {
			m.mu.Lock()
			doubt := m.heldBack(i/64)&(1<<(i%64)) != 0
			m.mu.Unlock()
			if doubt && !yield(i) {
				return
			}
		}
	}
}
