package faulty

import (
	"bytes"
	"maps"
	"slices"
)

// Sector is what a disk writes whole or not at all, in bytes.
const Sector = 512

const blockSectors = 64

// version is one content of a sector. Data is never changed once it is there.
type version struct {
	data     []byte // nil: zeros
	older    *version
	sequence uint64
	durable  bool
}

type block [blockSectors]*version

type length struct {
	size     int64
	sequence uint64
}

// inode is a file's content: what reads see, and what a cut may leave of it.
type inode struct {
	id          uint64
	size        int64
	durableSize int64
	sizes       []length // since the last sync
	blocks      map[int64]*block
	dirty       []int64 // sectors written since the last sync
	doubtful    []int64 // sectors that a failed sync was to sync
	data        int64   // sectors that are not holes, as reads see them
	names       int     // live ones
	torn        bool    // see Disk.Torn
}

func newInode(id uint64) *inode { return &inode{id: id, blocks: map[int64]*block{}} }

func (n *inode) head(sector int64) *version {
	if b := n.blocks[sector/blockSectors]; b != nil {
		return b[sector%blockSectors]
	}
	return nil
}

func content(v *version) []byte {
	if v == nil {
		return nil
	}
	return v.data
}

// put adds a version of a sector in slot v and tells by how many sectors of data the file grew.
func (n *inode) put(sector int64, v *version, data []byte, sequence uint64) int64 {
	b := n.blocks[sector/blockSectors]
	if b == nil {
		b = new(block)
		n.blocks[sector/blockSectors] = b
	}
	slot := &b[sector%blockSectors]
	grown := int64(0)
	if data != nil {
		grown++
	}
	if content(*slot) != nil {
		grown--
	}
	n.data += grown
	if *slot == nil || (*slot).durable {
		n.dirty = append(n.dirty, sector)
	} else if len(n.doubtful) > 0 {
		n.dirty = append(n.dirty, sector)
	}
	*v = version{data: data, older: *slot, sequence: sequence}
	*slot = v
	return grown
}

// fits is how many bytes of a write there is room for, with so many sectors left.
func (n *inode) fits(offset, size, room int64) int64 {
	for s := offset / Sector; s*Sector < offset+size; s++ {
		if content(n.head(s)) != nil {
			continue
		}
		if room--; room < 0 {
			return max(0, s*Sector-offset)
		}
	}
	return size
}

func (n *inode) read(p []byte, offset int64) {
	for len(p) > 0 {
		sector := offset / Sector
		b := n.blocks[sector/blockSectors]
		if b == nil {
			hole := min(int64(len(p)), (sector/blockSectors+1)*blockSectors*Sector-offset)
			clear(p[:hole])
			p, offset = p[hole:], offset+hole
			continue
		}
		skip := offset % Sector
		size := min(len(p), int(Sector-skip))
		if data := content(b[sector%blockSectors]); data == nil {
			clear(p[:size])
		} else {
			copy(p[:size], data[skip:])
		}
		p, offset = p[size:], offset+int64(size)
	}
}

// readDurable reads what no power cut takes away.
func (n *inode) readDurable(p []byte, offset int64) {
	for len(p) > 0 {
		sector, skip := offset/Sector, offset%Sector
		size := min(len(p), int(Sector-skip))
		v := n.head(sector)
		for v != nil && !v.durable {
			v = v.older
		}
		clear(p[:size])
		if data := content(v); data != nil {
			copy(p[:size], data[skip:])
		}
		if over := offset + int64(size) - n.durableSize; over > 0 {
			clear(p[max(0, int64(size)-over):size])
		}
		p, offset = p[size:], offset+int64(size)
	}
}

// write changes a range; the length grows with it.
func (n *inode) write(p []byte, offset int64, sequence uint64) (grown int64) {
	if len(p) == 0 {
		return 0
	}
	first, end := offset/Sector, (offset+int64(len(p))+Sector-1)/Sector
	buffer := make([]byte, (end-first)*Sector)
	lead := offset - first*Sector
	tail := int64(len(buffer)) - lead - int64(len(p))
	if lead > 0 {
		copy(buffer[:Sector], content(n.head(first)))
	}
	if tail > 0 {
		copy(buffer[len(buffer)-int(tail):], tailOf(content(n.head(end-1)), tail))
	}
	copy(buffer[lead:], p)
	versions := make([]version, end-first)
	for i := range versions {
		grown += n.put(first+int64(i), &versions[i], buffer[i*Sector:(i+1)*Sector:(i+1)*Sector], sequence)
	}
	if last := offset + int64(len(p)); last > n.size {
		n.resize(last, sequence)
	}
	return grown
}

// tears reports whether the first done bytes of a write leave a sector that is neither as before nor as the whole write
// would make it.
func (n *inode) tears(p []byte, done int, offset int64) bool {
	over := int((offset + int64(done)) % Sector)
	before := p[max(0, done-over):done]
	after := p[done:min(len(p), done+Sector-over)]
	old := make([]byte, len(before)+len(after))
	n.read(old, offset+int64(done-len(before)))
	return over > 0 && !bytes.Equal(old[:len(before)], before) && !bytes.Equal(old[len(before):], after)
}

func tailOf(data []byte, size int64) []byte {
	if data == nil {
		return nil
	}
	return data[Sector-size:]
}

func (n *inode) resize(size int64, sequence uint64) {
	n.size = size
	n.sizes = append(n.sizes, length{size, sequence})
}

// truncate sets the length; what is cut off reads as zeros should it come back.
func (n *inode) truncate(size int64, sequence uint64) (grown int64) {
	if size < n.size {
		grown = n.zero(size, n.size-size, sequence)
	}
	if size != n.size {
		n.resize(size, sequence)
	}
	return grown
}

// zero makes holes of whole sectors and clears the parts of others.
func (n *inode) zero(offset, size int64, sequence uint64) (grown int64) {
	end := offset + size
	for _, k := range slices.Sorted(maps.Keys(n.blocks)) {
		from := max(offset, k*blockSectors*Sector)
		to := min(end, (k+1)*blockSectors*Sector)
		for from < to {
			sector := from / Sector
			next := min(to, (sector+1)*Sector)
			old := content(n.head(sector))
			if old == nil {
				from = next
				continue
			}
			var data []byte
			if next-from < Sector {
				data = slices.Clone(old)
				clear(data[from-sector*Sector : next-sector*Sector])
			}
			grown += n.put(sector, new(version), data, sequence)
			from = next
		}
	}
	return grown
}

// sync makes everything durable but what an earlier sync failed at.
func (n *inode) sync() {
	for _, s := range n.dirty {
		settle(n.head(s))
	}
	n.dirty = n.dirty[:0]
	n.durableSize, n.sizes = n.size, n.sizes[:0]
}

func settle(v *version) {
	if v != nil && !v.durable {
		v.durable, v.older = true, nil
	}
}

// doubt is a sync that failed. With forget, chosen sectors read as before the last write.
func (n *inode) doubt(forget func(sector int64) bool) (grown int64) {
	for _, s := range n.dirty {
		slot := &n.blocks[s/blockSectors][s%blockSectors]
		if v := *slot; v != nil && !v.durable && forget(s) {
			if content(v) != nil {
				grown--
			}
			if content(v.older) != nil {
				grown++
			}
			*slot = v.older
		}
	}
	n.data += grown
	n.doubtful = append(n.doubtful, n.dirty...)
	n.dirty = n.dirty[:0]
	return grown
}
