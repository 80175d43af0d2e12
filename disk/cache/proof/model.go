// Package proof tries to break caches: it runs a base or a volume on a simulated disk and repository (package faulty)
// through random operations and failures, crashes the host at a random change, lets it recover, and checks what it
// reads against a model of the disk and the invariants of DESIGN.md. Everything follows from a seed.
package proof

import (
	"bytes"
	"fmt"
	"math"
	"slices"
)

const (
	sector = 512
	never  = math.MaxInt64
)

// change is a write, or zeros, or what was found after a recovery, on its way through time. Times are those of the
// model's clock, which ticks with each event.
type change struct {
	id             int
	offset, length int64
	zero           bool
	bytes          []byte // of the whole disk, for the image and what was found; otherwise by value
	start, end     int64  // end is never while it is under way
	ok             bool   // it was acknowledged
	durable        int64  // when that was promised; never until then
	lost           int64  // when a power cut may have taken it; never as long as none may have
	found          bool
	doubted        bool // a flush failed after it: no later one makes it durable for sure
}

func (c *change) String() string {
	kind := "write"
	switch {
	case c.id == 0:
		return "the image"
	case c.found:
		return fmt.Sprintf("what was found after the crash at %d", c.start)
	case c.zero:
		kind = "zero"
	}
	state := "acknowledged"
	switch {
	case c.end == never:
		state = "under way"
	case !c.ok:
		state = "failed"
	case c.durable != never:
		state = fmt.Sprintf("durable at %d", c.durable)
	}
	return fmt.Sprintf("%s %d (%d+%d, from %d to %d, %s)", kind, c.id, c.offset, c.length, c.start, c.end, state)
}

// value is the byte that a write puts into a sector.
func (c *change) value(s int64) byte {
	if c.zero {
		return 0
	}
	return byte(1 + mix(uint64(c.id)<<32^uint64(s))%255)
}

// same is a sector of each value, to copy from and compare with: quicker than byte by byte, most of all under the race
// detector.
type same [256][sector]byte

func newSame() *same {
	t := new(same)
	for v := range t {
		for i := range t[v] {
			t[v][i] = byte(v)
		}
	}
	return t
}

// content is what the change writes at offset, at most to the end of the sector.
func (c *change) content(t *same, offset int64, size int) []byte {
	if c.bytes != nil {
		return c.bytes[offset : offset+int64(size)]
	}
	return t[c.value(offset/sector)][:size]
}

// fill gives what the change writes to p at offset.
func (c *change) fill(t *same, p []byte, offset int64) {
	for len(p) > 0 {
		size := min(len(p), int(sector-offset%sector))
		copy(p[:size], c.content(t, offset, size))
		p, offset = p[size:], offset+int64(size)
	}
}

// wrote reports whether p is what the change writes at offset, within one sector.
func (c *change) wrote(t *same, p []byte, offset int64) bool {
	return bytes.Equal(p, c.content(t, offset, len(p)))
}

type interval struct{ start, end int64 }

// Model knows what a disk may hold. It is not safe for concurrent use.
type Model struct {
	size    int64
	same    *same
	clock   int64
	changes []*change
	// by sector, which changes touch it, in order of their starts, after the image
	touched [][]*change
	flushes []interval // that were acknowledged
	// uncertain: the repository that alone has what was written lost power. What was not durable may be seen or not.
	uncertain bool
}

// newModel is of a disk with these bytes, which are durable.
func newModel(image []byte, t *same) *Model {
	first := &change{length: int64(len(image)), bytes: image, start: -1, end: 0, ok: true, durable: 0, lost: never}
	m := &Model{same: t, size: int64(len(image)), changes: []*change{first}}
	m.touched = make([][]*change, (len(image)+sector-1)/sector)
	for i := range m.touched {
		m.touched[i] = []*change{first}
	}
	return m
}

func (m *Model) tick() int64 {
	m.clock++
	return m.clock
}

func (m *Model) begin(c *change) *change {
	c.id, c.start, c.end, c.durable, c.lost = len(m.changes), m.tick(), never, never, never
	m.changes = append(m.changes, c)
	for s := c.offset / sector; s*sector < c.offset+c.length; s++ {
		m.touched[s] = append(m.touched[s], c)
	}
	return c
}

// end is the answer to a change. One that failed may be there or not, in any mixture, until another one covers it.
func (m *Model) end(c *change, ok, durable bool) {
	c.end, c.ok = m.tick(), ok
	if ok && durable {
		c.durable = c.end
	}
}

// flushed is the answer to a flush that began at start and succeeded.
func (m *Model) flushed(start int64) {
	now := m.tick()
	m.flushes = append(m.flushes, interval{start, now})
	for _, c := range m.changes {
		if c.ok && c.end < start && !c.doubted && c.lost == never {
			c.durable = min(c.durable, now)
		}
	}
}

// doubt is a flush that failed.
func (m *Model) doubt() {
	for _, c := range m.changes {
		c.doubted = c.doubted || c.durable == never
	}
}

// found is what the disk holds after a recovery: from now on it holds that. With doubt no flush makes it durable.
func (m *Model) found(disk []byte, doubt bool) {
	c := m.begin(&change{length: m.size, bytes: disk, found: true, doubted: doubt})
	m.end(c, true, false)
}

// crash ends what is under way: it may be done or not.
func (m *Model) crash() {
	now := m.tick()
	for _, c := range m.changes {
		if c.end == never {
			c.end = now
		}
	}
}

// cut is a power cut of a host that alone has what was written: what was not durable may be gone. Until it is known
// what is left, which found tells, either may be seen, and what no flush covered is covered by no later one.
func (m *Model) cut() {
	now := m.tick()
	for _, c := range m.changes {
		if c.durable == never {
			c.lost = min(c.lost, now)
		}
	}
}

// rule says which changes may be seen.
type rule struct {
	what string
	// may says that the change can have happened; covers that it must have, for all that came before it.
	may    func(c *change) bool
	covers func(c *change) bool
}

// reading is what a read may see that began at start and ended now.
func (m *Model) reading(start int64) rule {
	return rule{
		what: "a read",
		may:  func(*change) bool { return true },
		covers: func(c *change) bool {
			return c.ok && c.end < start && (c.durable != never || !m.uncertain && c.lost == never)
		},
	}
}

// kept is what must be left after a power cut now: what was promised to be durable.
func (m *Model) kept() rule {
	return rule{
		what:   "after a power cut",
		may:    func(*change) bool { return true },
		covers: func(c *change) bool { return c.durable != never },
	}
}

// epoch k: all that was acknowledged before the k-th flush, nothing that began after the next.
func (m *Model) epoch(k int) rule {
	from, to := int64(0), int64(never)
	if k > 0 {
		from = m.flushes[k-1].start
	}
	if k < len(m.flushes) {
		to = m.flushes[k].end
	}
	return rule{
		what:   fmt.Sprintf("epoch %d", k),
		may:    func(c *change) bool { return c.start < to },
		covers: func(c *change) bool { return c.ok && c.end < from && !c.doubted && from < c.lost },
	}
}

// candidates are the changes of which a byte may be, by a rule.
func candidates(touching []*change, r rule) []*change {
	// The latest start among those that cover hides all that ended before.
	hidden := int64(-1)
	for _, c := range touching {
		if r.covers(c) {
			hidden = max(hidden, c.start)
		}
	}
	var out []*change
	for _, c := range touching {
		if c.end >= hidden && r.may(c) {
			out = append(out, c)
		}
	}
	return out
}

// Check says whether p, read at offset, is allowed by a rule; the error names the first byte that is not.
func (m *Model) check(p []byte, offset int64, r rule) error {
	for len(p) > 0 {
		s := offset / sector
		size := min(int64(len(p)), (s+1)*sector-offset)
		// Neighbours that were never written are compared at once.
		for n := s; len(m.touched[n]) == 1 && size < int64(len(p)) && len(m.touched[n+1]) == 1; n++ {
			size = min(int64(len(p)), (n+2)*sector-offset)
		}
		if size > sector && bytes.Equal(p[:size], m.changes[0].bytes[offset:offset+size]) {
			p, offset = p[size:], offset+size
			continue
		}
		size = min(int64(len(p)), (s+1)*sector-offset)
		if err := m.checkSector(p[:size], offset, m.touched[s], r); err != nil {
			return err
		}
		p, offset = p[size:], offset+size
	}
	return nil
}

func (m *Model) checkSector(p []byte, offset int64, touching []*change, r rule) error {
	for cut := range pieces(touching, offset, int64(len(p))) {
		covering := touching
		if len(touching) > 1 {
			covering = nil
			for _, c := range touching {
				if c.offset <= cut.start && cut.end <= c.offset+c.length {
					covering = append(covering, c)
				}
			}
		}
		part := p[cut.start-offset : cut.end-offset]
		may := candidates(covering, r)
		if slices.ContainsFunc(may, func(c *change) bool { return c.wrote(m.same, part, cut.start) }) {
			continue
		}
		// A mixture.
		for i := range part {
			at := cut.start + int64(i)
			if !slices.ContainsFunc(may, func(c *change) bool { return c.wrote(m.same, part[i:i+1], at) }) {
				return m.explain(part[i:], at, may, r)
			}
		}
	}
	return nil
}

// pieces are the parts of a range that the same changes cover.
func pieces(touching []*change, offset, length int64) func(func(interval) bool) {
	end := offset + length
	return func(yield func(interval) bool) {
		for at := offset; at < end; {
			next := end
			for _, c := range touching {
				for _, edge := range [...]int64{c.offset, c.offset + c.length} {
					if edge > at {
						next = min(next, edge)
					}
				}
			}
			if !yield(interval{at, next}) {
				return
			}
			at = next
		}
	}
}

func (m *Model) explain(p []byte, at int64, may []*change, r rule) error {
	var b bytes.Buffer
	for _, c := range may {
		fmt.Fprintf(&b, "\n    %v", c)
	}
	return fmt.Errorf("%s: byte %d (sector %d) is %#02x, which is %s; it may be that of%s", r.what, at, at/sector, p[0], m.origin(p, at), b.String())
}

// origin says which change wrote what is found at a place: the last that can be it.
func (m *Model) origin(p []byte, at int64) string {
	from := "no change"
	for _, c := range m.touched[at/sector] {
		size := min(8, int64(len(p)), sector-at%sector, c.offset+c.length-at)
		if c.offset <= at && size > 0 && c.wrote(m.same, p[:size], at) {
			from = c.String()
		}
	}
	return from
}

// ordered finds the epoch of which a disk's bytes are: all of what was before it, some of its own, nothing later.
func (m *Model) ordered(disk []byte) error {
	var first, last error
	low := 0
	// By sector so that the search is short: what rules an epoch out rules it out for good.
	possible := make([]bool, len(m.flushes)+1)
	for i := range possible {
		possible[i] = true
	}
	for s, touching := range m.touched {
		if len(touching) == 1 {
			if at := int64(s) * sector; !touching[0].wrote(m.same, disk[at:min(at+sector, m.size)], at) {
				return m.check(disk[at:min(at+sector, m.size)], at, m.epoch(0))
			}
			continue
		}
		at := int64(s) * sector
		for k := low; k < len(possible); k++ {
			if !possible[k] {
				continue
			}
			if err := m.check(disk[at:min(at+sector, m.size)], at, m.epoch(k)); err != nil {
				possible[k] = false
				if first == nil {
					first = err
				}
				last = err
			}
		}
		for low < len(possible) && !possible[low] {
			low++
		}
		if low == len(possible) {
			return fmt.Errorf("the source is of no epoch: %w; and %w", first, last)
		}
	}
	return nil
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
