package contextdisk

import (
	"encoding/binary"
	"fmt"
	"time"
)

// descriptor is the primary volume descriptor (ECMA-119, 8.4) or the supplementary one of Joliet (8.5).
func (t *tree) descriptor(sectors, tables int, at time.Time) []byte {
	d := make([]byte, sector)
	text := func(from, to int, value string) {
		field := d[from:to]
		if !t.joliet {
			for i := range field {
				field[i] = ' '
			}
			copy(field, value)
			return
		}
		for i := 0; i+1 < len(field); i += 2 {
			field[i+1] = ' '
		}
		copy(field, ucs2(value))
	}
	d[0] = 1
	copy(d[1:], "CD001\x01")
	text(8, 40, "LINUX")
	text(40, 72, Label)
	both32(d[80:], sectors)
	if t.joliet {
		d[0] = 2
		copy(d[88:], "%/E") // UCS-2 level 3
	}
	both16(d[120:], 1) // volumes in the set
	both16(d[124:], 1) // this one's number
	both16(d[128:], sector)
	both32(d[132:], len(t.pathTable(false)))
	binary.LittleEndian.PutUint32(d[140:], uint32(tables))
	binary.BigEndian.PutUint32(d[148:], uint32(tables+1))
	copy(d[156:], record(t.date, dot, t.location, len(t.data), isDirectory, nil))
	text(190, 318, "")
	text(318, 446, "")
	text(446, 574, "HAYLOFT")
	text(574, 702, "HAYLOFT")
	text(702, 739, "")
	text(739, 776, "")
	text(776, 813, "")
	at = at.UTC()
	date := fmt.Sprintf("%s%02d\x00", at.Format("20060102150405"), at.Nanosecond()/10_000_000)
	never := "0000000000000000\x00"
	copy(d[813:], date+date+never+date)
	d[881] = 1
	return d
}

// pathTable lists the root directory, which is all there is (ECMA-119, 9.4).
func (t *tree) pathTable(bigEndian bool) []byte {
	p := make([]byte, 10)
	p[0] = 1
	if bigEndian {
		binary.BigEndian.PutUint32(p[2:], uint32(t.location))
		p[7] = 1
	} else {
		binary.LittleEndian.PutUint32(p[2:], uint32(t.location))
		p[6] = 1
	}
	return p
}

func both32(b []byte, value int) {
	binary.LittleEndian.PutUint32(b, uint32(value))
	binary.BigEndian.PutUint32(b[4:], uint32(value))
}

func both16(b []byte, value int) {
	binary.LittleEndian.PutUint16(b, uint16(value))
	binary.BigEndian.PutUint16(b[2:], uint16(value))
}
