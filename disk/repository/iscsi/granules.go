package iscsi

import "sync"

// granule is the unit, in bytes, in which a writer remembers what it wrote. Volumes are multiples of it, also where extents
// of the group are smaller.
const granule = 64 << 10

// granules are those of a volume that show what was written, not what was on the disks before. Safe for concurrent use.
type granules struct {
	mu   sync.Mutex
	bits []uint64
}

func (g *granules) has(i int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.get(i)
}

func (g *granules) get(i int64) bool {
	return i>>6 < int64(len(g.bits)) && g.bits[i>>6]>>(i&63)&1 == 1
}

// set marks first to last, and not last itself.
func (g *granules) set(first, last int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for int64(len(g.bits))<<6 < last {
		g.bits = append(g.bits, 0)
	}
	for i := first; i < last; i++ {
		g.bits[i>>6] |= 1 << (i & 63)
	}
}

// run is a range of bytes.
type run struct {
	start, end int64
	written    bool
}

// next is the longest run of one sort that begins at offset and does not go beyond limit.
func (g *granules) next(offset, limit int64) run {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := run{start: offset, written: g.get(offset / granule)}
	i := offset/granule + 1
	for i*granule < limit && g.get(i) == r.written {
		i++
	}
	r.end = min(i*granule, limit)
	return r
}
