package address

import (
	"math/bits"

	"hayloft/cloud/fault"
)

// Indices is a set of indices of one range. The zero value is empty. 65,536 indices take 8 KiB. Not safe for
// concurrent use while it changes.
type Indices struct {
	words []uint64
	count int
}

// IndicesOf makes a set of a list.
func IndicesOf(list ...int) *Indices {
	s := new(Indices)
	for _, i := range list {
		s.Add(i)
	}
	return s
}

// Add puts an index in; negative ones are not kept.
func (s *Indices) Add(index int) {
	if index < 0 || s.Has(index) {
		return
	}
	for len(s.words) <= index/64 {
		s.words = append(s.words, 0)
	}
	s.words[index/64] |= 1 << (index % 64)
	s.count++
}

// Remove takes an index out.
func (s *Indices) Remove(index int) {
	if s.Has(index) {
		s.words[index/64] &^= 1 << (index % 64)
		s.count--
	}
}

// Has tells whether an index is in.
func (s *Indices) Has(index int) bool {
	return index >= 0 && index/64 < len(s.words) && s.words[index/64]&(1<<(index%64)) != 0
}

// Len is the number of indices in the set.
func (s *Indices) Len() int { return s.count }

// gap is the first index from i on that is not in.
func (s *Indices) gap(i int) int {
	for i/64 < len(s.words) {
		free := ^s.words[i/64] &^ (1<<(i%64) - 1)
		if free != 0 {
			return i/64*64 + bits.TrailingZeros64(free)
		}
		i = (i/64 + 1) * 64
	}
	return i
}

// NextFree finds the first index from start on, and then from 0, that is neither used nor reserved in the
// subnet. A full range is fault.OutOfSpace.
func (r Range) NextFree(used *Indices, start int, subnet Subnet) (int, error) {
	if start < 0 || start >= r.Size {
		start = 0
	}
	if index, ok := r.freeWithin(used, start, r.Size, subnet); ok {
		return index, nil
	}
	if index, ok := r.freeWithin(used, 0, start, subnet); ok {
		return index, nil
	}
	return 0, fault.Errorf(fault.OutOfSpace, "AR %d: no free address among %d", r.ID, r.Size)
}

func (r Range) freeWithin(used *Indices, from, to int, subnet Subnet) (int, bool) {
	for i := used.gap(from); i < to; i = used.gap(i + 1) {
		if !r.reserved(i, subnet) {
			return i, true
		}
	}
	return 0, false
}

func (r Range) reserved(index int, subnet Subnet) bool {
	return r.Type.Has4() && subnet.Reserved(add4(r.IP, index)) ||
		r.Type.HasStatic6() && subnet.Reserved(add6(r.IP6, index))
}
