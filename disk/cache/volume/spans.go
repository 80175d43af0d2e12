package volume

import (
	"slices"
	"sort"
)

// span is a range whose newest content is in the log at pos.
type span struct {
	start, end int64
	pos        uint64 // of the bytes of start, or of the record of zeros with a flag
}

const (
	zeroSpan   = 1 << 63 // zeros: there are no bytes
	noHoleSpan = 1 << 62 // that are to take up space
	posMask    = noHoleSpan - 1
)

func (s span) zero() bool { return s.pos&zeroSpan != 0 }

// from cuts off what lies before at.
func (s span) from(at int64) span {
	if s.start < at {
		if !s.zero() {
			s.pos += uint64(at - s.start)
		}
		s.start = at
	}
	return s
}

// spansOfBlock: a block is split when it has more, so 24 to 48 bytes a span.
const spansOfBlock = 256

// spans is an ordered set of spans that do not overlap, in blocks. Not safe for concurrent use.
type spans struct {
	blocks [][]span // none is empty
	n      int
}

// find is the place of the first span that ends behind at.
func (x *spans) find(at int64) (block, i int) {
	block = sort.Search(len(x.blocks), func(b int) bool {
		all := x.blocks[b]
		return all[len(all)-1].end > at
	})
	if block == len(x.blocks) {
		return block, 0
	}
	all := x.blocks[block]
	return block, sort.Search(len(all), func(i int) bool { return all[i].end > at })
}

// next is the first span that ends behind at.
func (x *spans) next(at int64) (span, bool) {
	block, i := x.find(at)
	if block == len(x.blocks) {
		return span{}, false
	}
	return x.blocks[block][i], true
}

// put has s replace what it covers.
func (x *spans) put(s span) {
	x.remove(s.start, s.end, ^uint64(0))
	block, i := x.find(s.start)
	x.insert(block, i, s)
}

// remove takes out what of [start, end) has a position before that given.
func (x *spans) remove(start, end int64, before uint64) {
	for at := start; at < end; {
		block, i := x.find(at)
		if block == len(x.blocks) {
			return
		}
		all := x.blocks[block]
		s := all[i]
		if s.start >= end {
			return
		}
		at = s.end
		if s.pos&posMask >= before {
			continue
		}
		left, right := s.start < start, s.end > end
		switch {
		case left && right:
			all[i].end = start
			x.insert(block, i+1, s.from(end))
		case left:
			all[i].end = start
		case right:
			all[i] = s.from(end)
		default:
			// A run of those that go whole, at once.
			j := i + 1
			for j < len(all) && all[j].end <= end && all[j].pos&posMask < before {
				j++
			}
			at = all[j-1].end
			x.n -= j - i
			if j-i == len(all) {
				x.blocks = slices.Delete(x.blocks, block, block+1)
			} else {
				x.blocks[block] = slices.Delete(all, i, j)
			}
		}
	}
}

func (x *spans) insert(block, i int, s span) {
	x.n++
	if block == len(x.blocks) {
		if block == 0 {
			x.blocks = append(x.blocks, append(make([]span, 0, 4), s))
			return
		}
		block--
		i = len(x.blocks[block])
	}
	all := slices.Insert(x.blocks[block], i, s)
	x.blocks[block] = all
	if len(all) <= spansOfBlock {
		return
	}
	half := len(all) / 2
	tail := append(make([]span, 0, spansOfBlock+1), all[half:]...)
	x.blocks[block] = all[:half]
	x.blocks = slices.Insert(x.blocks, block+1, tail)
}
