package volume

import (
	"sync"
	"sync/atomic"
)

// residents counts the chunks kept in the data file, and makes room for more by dropping those that were not used
// since the hand of the clock came by last.
type residents struct {
	limit int64        // chunks; below 0: no limit
	used  atomic.Int64 // chunks with their bit set, or about to have it set
	// changes counts evictions: a reader that saw the same number before and after read what the bits promised.
	changes atomic.Uint64
	touched []atomic.Uint64 // by readers, one bit a chunk; nil without a limit

	mu   sync.Mutex
	hand int64
}

func (r *residents) touch(chunk int64) {
	if r.touched == nil {
		return
	}
	word, bit := &r.touched[chunk/64], uint64(1)<<(chunk%64)
	if word.Load()&bit == 0 {
		word.Or(bit)
	}
}

// room takes the place of one chunk; false when none is to be had. A place taken is given back with used.Add(-1).
func (v *volume) room() bool {
	r := &v.residents
	for {
		n := r.used.Load()
		if r.limit >= 0 && n >= r.limit {
			if !v.evict() {
				return false
			}
			continue
		}
		if r.used.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// evict drops one chunk that nobody works on: the bit first, then the bytes.
func (v *volume) evict() bool {
	r := &v.residents
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limit == 0 {
		return false
	}
	wrapped := 0
	for wrapped < 3 {
		c := v.present.next(r.hand)
		if c == v.present.size {
			r.hand = 0
			wrapped++
			continue
		}
		r.hand = c + 1
		if word, bit := &r.touched[c/64], uint64(1)<<(c%64); word.Load()&bit != 0 {
			word.And(^bit)
			continue
		}
		start, end := v.chunkRange(c)
		h := v.ranges.TryLock(start, end)
		if h == nil {
			continue
		}
		gone := v.present.has(c) && v.drop(c, c+1) == nil
		h.Unlock()
		if gone {
			return true
		}
	}
	return false
}

// drop forgets chunks; whoever calls holds them, or what was changed in them.
func (v *volume) drop(from, to int64) error {
	n, err := v.clearPresent(from, to)
	if n == 0 || err != nil {
		return err
	}
	v.residents.used.Add(-n)
	return v.giveBack(from, to)
}

// giveBack gives back the space of chunks that are not present, when there is need for it.
func (v *volume) giveBack(from, to int64) error {
	if v.residents.limit < 0 {
		return nil
	}
	v.residents.changes.Add(1)
	start, _ := v.chunkRange(from)
	_, end := v.chunkRange(to - 1)
	if err := v.data.Punch(start, end-start); err != nil {
		v.local(err)
	}
	return nil
}
