package s3

import "slices"

// spans is a set of bytes: ranges in order that do not touch.
type spans []span

// first is the index of the first range that ends at or after offset.
func (s spans) first(offset int64) int {
	i, _ := slices.BinarySearchFunc(s, offset, func(r span, at int64) int {
		if r.end < at {
			return -1
		}
		return 1
	})
	return i
}

// add puts a range into the set.
func (s spans) add(r span) spans {
	if r.start >= r.end {
		return s
	}
	i := s.first(r.start)
	j := i
	for j < len(s) && s[j].start <= r.end {
		r = span{min(r.start, s[j].start), max(r.end, s[j].end)}
		j++
	}
	return slices.Replace(s, i, j, r)
}

// cut takes out what lies at size and beyond.
func (s spans) cut(size int64) spans {
	i := s.first(size)
	if i == len(s) || s[i].start >= size {
		return s[:i]
	}
	s[i].end = size
	return s[:i+1]
}

// next is the first range with bytes of the set at or after offset.
func (s spans) next(offset int64) (span, bool) {
	i := s.first(offset)
	if i < len(s) && s[i].end == offset {
		i++
	}
	if i == len(s) {
		return span{}, false
	}
	return span{max(s[i].start, offset), s[i].end}, true
}

// touches reports whether any byte of r is in the set.
func (s spans) touches(r span) bool {
	n, ok := s.next(r.start)
	return ok && n.start < r.end
}

// covers reports whether all bytes of r are in the set.
func (s spans) covers(r span) bool {
	n, ok := s.next(r.start)
	return r.start >= r.end || ok && n.start == r.start && n.end >= r.end
}

// gaps are the ranges of r that are not in the set.
func (s spans) gaps(r span) []span {
	var all []span
	for at := r.start; at < r.end; {
		n, ok := s.next(at)
		if !ok || n.start >= r.end {
			return append(all, span{at, r.end})
		}
		if n.start > at {
			all = append(all, span{at, n.start})
		}
		at = n.end
	}
	return all
}
