package contextdisk

import (
	"slices"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

// Label is the volume label that guests look for.
const Label = "CONTEXT"

// MaxImage is the size that an image is refused above, in bytes.
const MaxImage = 64 << 20

// leastSectors is the size that smaller images are padded to: guests look for the super blocks of many file
// systems, the last beyond 256 KiB, and some (busybox) take a read past the end of the disk for a bad disk.
const leastSectors = 192

// Where things are, in sectors.
const (
	sector           = 2048 // bytes
	primarySector    = 16
	jolietSector     = 17
	terminatorSector = 18
	primaryTables    = 19 // path table, little-endian, then big-endian
	jolietTables     = 21
	continuation     = 23 // of the root's Rock Ridge entries
	firstDirectory   = 24
)

// Image makes an ISO 9660 image (ECMA-119) of one directory, with Rock Ridge and Joliet names. Its files belong to
// root and are readable for root alone. at is the time of volume and files. Bad names and more than MaxImage
// bytes are fault.Invalid.
func Image(files map[string][]byte, at time.Time) ([]byte, error) {
	entries, err := makeEntries(files)
	if err != nil {
		return nil, err
	}
	// A directory's size does not depend on places: lay out once to learn it, then with the right places.
	primary := tree{location: firstDirectory, date: recordDate(at)}
	joliet := tree{joliet: true, date: recordDate(at)}
	primary.layOut(entries)
	joliet.layOut(entries)
	joliet.location = primary.location + len(primary.data)/sector
	next := joliet.location + len(joliet.data)/sector
	for _, e := range entries {
		if len(e.content) > 0 {
			e.location = next
		}
		next += (len(e.content) + sector - 1) / sector
		if next > MaxImage/sector {
			return nil, fault.Errorf(fault.Invalid, "context disk: more than %d MiB of files", MaxImage>>20)
		}
	}
	primary.layOut(entries)
	joliet.layOut(entries)
	next = max(next, leastSectors)

	image := make([]byte, next*sector)
	at0 := func(place int, data []byte) { copy(image[place*sector:], data) }
	at0(primarySector, primary.descriptor(next, primaryTables, at))
	at0(jolietSector, joliet.descriptor(next, jolietTables, at))
	at0(terminatorSector, []byte("\xffCD001\x01"))
	for i, table := range [][]byte{primary.pathTable(false), primary.pathTable(true), joliet.pathTable(false), joliet.pathTable(true)} {
		at0(primaryTables+i, table)
	}
	at0(continuation, rockRidgeIdentification())
	at0(primary.location, primary.data)
	at0(joliet.location, joliet.data)
	for _, e := range entries {
		at0(e.location, e.content)
	}
	return image, nil
}

// tree is one of the two views of the root directory.
type tree struct {
	joliet   bool
	date     []byte
	location int    // sector
	data     []byte // the directory, whole sectors
}

// layOut writes the directory's records, of which none crosses the end of a sector.
func (t *tree) layOut(entries []*entry) {
	size := len(t.data)
	t.data = nil
	if t.joliet {
		t.add(record(t.date, dot, t.location, size, isDirectory, nil))
		t.add(record(t.date, dotDot, t.location, size, isDirectory, nil))
	} else {
		t.add(record(t.date, dot, t.location, size, isDirectory, rootSystemUse()))
		t.add(record(t.date, dotDot, t.location, size, isDirectory, posix(directoryMode, 2)))
	}
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b *entry) int { return strings.Compare(t.name(a), t.name(b)) })
	for _, e := range sorted {
		var use []byte
		if !t.joliet {
			use = e.systemUse()
		}
		t.add(record(t.date, t.name(e), e.location, len(e.content), isFile, use))
	}
	t.data = append(t.data, make([]byte, -len(t.data)&(sector-1))...)
}

func (t *tree) name(e *entry) string {
	if t.joliet {
		return ucs2(e.name)
	}
	return e.short
}

func (t *tree) add(record []byte) {
	if room := sector - len(t.data)%sector; len(record) > room {
		t.data = append(t.data, make([]byte, room)...)
	}
	t.data = append(t.data, record...)
}
