package s3

const (
	mib      = 1 << 20
	leastCut = 5 * mib // bytes that a part has at least, and what a range is copied of
	maxParts = 10_000

	// Objects that are written: parts of firstPart, doubled after every doubleAfter of them, up to lastPart. All parts
	// together have some 7 TiB, and most images have small ones.
	firstPart   = int64(16 * mib)
	doubleAfter = 500
	lastPart    = int64(1 << 30)
	// clones are cut finer as far as their parent goes, so that a small change costs little
	cloneParts = 5000
)

// layout cuts an object into parts whatever its size will be. Parts are counted from 0.
type layout struct {
	fine  int64 // size of each of the first parts
	count int   // of these
}

// layoutOf is for a clone of so many bytes, 0 for an object without parent.
func layoutOf(parent int64) layout {
	if parent == 0 {
		return layout{}
	}
	fine := max(leastCut, (parent/cloneParts+mib-1)/mib*mib)
	return layout{fine, int((parent + fine - 1) / fine)}
}

// size of a part that is not the last.
func (l layout) size(part int) int64 {
	if part < l.count {
		return l.fine
	}
	return min(firstPart<<min((part-l.count)/doubleAfter, 30), lastPart)
}

// span is the range [start, end).
type span struct{ start, end int64 }

// parts cuts size bytes; more than maxParts of them are one too many.
func (l layout) parts(size int64) []span {
	var all []span
	for start := int64(0); start < size && len(all) <= maxParts; {
		end := min(start+l.size(len(all)), size)
		all = append(all, span{start, end})
		start = end
	}
	return all
}

// at is the part that offset lies in, and its range.
func (l layout) at(offset int64) (int, span) {
	if limit := int64(l.count) * l.fine; offset < limit {
		part := int(offset / l.fine)
		return part, span{int64(part) * l.fine, int64(part+1) * l.fine}
	}
	part, start := l.count, int64(l.count)*l.fine
	for { // a step for each size that there is
		size := l.size(part)
		run := int64(doubleAfter)
		if size == lastPart {
			run = 1 << 32
		}
		if skip := (offset - start) / size; skip < run {
			start += skip * size
			return part + int(skip), span{start, start + size}
		}
		start += run * size
		part += int(run)
	}
}
