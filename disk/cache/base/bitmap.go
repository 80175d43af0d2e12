package base

import "sync/atomic"

// bitmap has one bit a chunk. It is safe for concurrent use and never waits.
type bitmap []atomic.Uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

func (m bitmap) has(i int) bool { return m[i>>6].Load()&(1<<(i&63)) != 0 }

// set and clear return what the bit was.
func (m bitmap) set(i int) (was bool) {
	bit := uint64(1) << (i & 63)
	if m[i>>6].Load()&bit != 0 { // spares others the cache line
		return true
	}
	return m[i>>6].Or(bit)&bit != 0
}

func (m bitmap) clear(i int) (was bool) {
	bit := uint64(1) << (i & 63)
	return m[i>>6].And(^bit)&bit != 0
}

// all reports whether every bit from first to last, both included, is set.
func (m bitmap) all(first, last int) bool {
	for w := first >> 6; w <= last>>6; w++ {
		mask := ^uint64(0)
		if w == first>>6 {
			mask <<= first & 63
		}
		if w == last>>6 {
			mask &= ^uint64(0) >> (63 - last&63)
		}
		if m[w].Load()&mask != mask {
			return false
		}
	}
	return true
}

// any reports whether a bit from first to last, both included, is set.
func (m bitmap) any(first, last int) bool {
	for i := first; i <= last; i++ {
		if m.has(i) {
			return true
		}
	}
	return false
}
