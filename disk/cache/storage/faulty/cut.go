package faulty

import (
	"fmt"
	"maps"
	"slices"
)

// Choice is how a cut chooses among what it may leave.
type Choice int

// The choices. Chance picks one of the others for files and names, and the sectors within, by the seed.
const (
	Chance Choice = iota
	Nothing
	Everything
	InOrder // what was done before some moment, nothing later
	Half    // each sector and name with even odds
	Few     // nearly nothing
	Most    // nearly everything
)

func (c Choice) String() string {
	return [...]string{"chance", "nothing", "everything", "in-order", "half", "few", "most"}[c]
}

// Cut is a power cut by chance: see CutAs.
func (d *Disk) Cut() { d.CutAs(Chance) }

// CutAs is a power cut. For each file any of the contents that a sector had since it was last durable may be left,
// any length since, each change of names by itself; how is chosen as c says. Handles are dead, and the next run begins.
// What the cut did is told for the log of a failed test.
func (d *Disk) CutAs(c Choice) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, told := d.outcome(c, 0)
	d.install(names)
	d.restart()
	return told
}

// Fork is another disk with what a power cut now may leave; this one goes on. Different salts give different outcomes.
func (d *Disk) Fork(c Choice, salt uint64) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := New(d.seed + salt)
	f.runs, f.capacity = d.runs+1, d.capacity
	maps.Copy(f.born, d.born)
	names, _ := d.outcome(c, salt)
	f.install(names)
	return f
}

func (d *Disk) install(names map[string]*inode) {
	d.live, d.durable, d.pending, d.used = names, maps.Clone(names), nil, 0
	for _, n := range names {
		if n.names++; n.names == 1 {
			d.used += n.data * Sector
		}
	}
}

func (d *Disk) outcome(c Choice, salt uint64) (map[string]*inode, string) {
	pick := func(parts ...uint64) uint64 { return d.chance(append(parts, salt, 0xc07)...) }
	ofNames, ofFiles := c, c
	if c == Chance {
		ofNames, ofFiles = anyChoice(pick(1)), anyChoice(pick(2))
		if ofFiles == InOrder && pick(3)%4 > 0 {
			ofNames = InOrder
		}
	}
	moment := d.moment(unit(pick(4)))

	names := maps.Clone(d.durable)
	for i, change := range d.pending {
		if ofNames.keeps(change.sequence, moment, pick(5, uint64(i))) {
			change.apply(names)
		}
	}
	// One file may have two names.
	left := map[*inode]*inode{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		old := names[name]
		if left[old] == nil {
			ofThis := ofFiles
			if c == Chance && ofFiles != InOrder && pick(6, old.id)%4 == 0 {
				ofThis = anyChoice(pick(7, old.id))
			}
			left[old] = old.outcome(ofThis, moment, func(parts ...uint64) uint64 { return pick(append(parts, old.id)...) })
		}
		names[name] = left[old]
	}
	return names, fmt.Sprintf("cut: names %v, files %v", ofNames, ofFiles)
}

func anyChoice(h uint64) Choice { return Nothing + Choice(h%uint64(Most)) }

func (c Choice) keeps(sequence, moment, h uint64) bool {
	switch c {
	case Everything:
		return true
	case InOrder:
		return sequence <= moment
	case Half:
		return h%2 == 0
	case Few:
		return h%16 == 0
	case Most:
		return h%16 != 0
	}
	return false
}

// moment is a time within what is not durable yet.
func (d *Disk) moment(at float64) uint64 {
	first := d.sequence + 1
	note := func(n *inode) {
		for _, l := range n.sizes {
			first = min(first, l.sequence)
		}
		for _, list := range [][]int64{n.dirty, n.doubtful} {
			for _, s := range list {
				for v := n.head(s); v != nil && !v.durable; v = v.older {
					first = min(first, v.sequence)
				}
			}
		}
	}
	for _, n := range d.live {
		note(n)
	}
	for _, c := range d.pending {
		first = min(first, c.sequence)
	}
	return first - 1 + uint64(at*float64(d.sequence-first+2))
}

// outcome is a content that a cut may leave.
func (n *inode) outcome(c Choice, moment uint64, pick func(...uint64) uint64) *inode {
	left := newInode(n.id)
	left.torn = n.torn
	left.size = n.durableSize
	for i := len(n.sizes) - 1; i >= 0; i-- {
		if c.keeps(n.sizes[i].sequence, moment, pick(8, uint64(i))) {
			left.size = n.sizes[i].size
			break
		}
	}
	left.durableSize = left.size
	for k, b := range n.blocks {
		var kept *block
		for i, v := range b {
			for depth := uint64(0); v != nil && !v.durable && !c.keeps(v.sequence, moment, pick(9, uint64(k*blockSectors+int64(i)), depth)); depth++ {
				v = v.older
			}
			data := content(v)
			if over := (k*blockSectors+int64(i)+1)*Sector - left.size; data != nil && over > 0 {
				data = cutOff(data, over)
			}
			if data == nil {
				continue
			}
			if kept == nil {
				kept = new(block)
				left.blocks[k] = kept
			}
			left.data++
			if v.durable && len(data) == Sector && &data[0] == &v.data[0] && v.older == nil {
				kept[i] = v // shared: never changed again
			} else {
				kept[i] = &version{data: data, durable: true}
			}
		}
	}
	return left
}

// cutOff is a sector without its last bytes, nil when none are left.
func cutOff(data []byte, over int64) []byte {
	if over >= Sector {
		return nil
	}
	short := slices.Clone(data)
	clear(short[Sector-over:])
	return short
}
