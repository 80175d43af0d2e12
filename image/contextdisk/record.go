package contextdisk

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"hayloft/cloud/fault"
)

// Flags of a directory record, and what Rock Ridge says of files and the root.
const (
	isFile        = 0
	isDirectory   = 2
	fileMode      = 0o100400
	directoryMode = 0o040500

	dot    = "\x00"
	dotDot = "\x01"
)

// entry is one file.
type entry struct {
	name     string // as Rock Ridge and Joliet show it
	short    string // 8.3, for those who know neither
	content  []byte
	location int // sector
}

// The longest names: what fits a directory record in UCS-2 (Joliet) and in Rock Ridge without continuation.
const (
	maxNameUnits = 103 // UTF-16
	maxNameBytes = 150 // UTF-8
)

// checkName refuses what cannot be a file's name on all of the file systems it may be put on.
func checkName(name string) error {
	bad := func(why string) error {
		return fault.Errorf(fault.Invalid, "context disk: file name %q: %s", name, why)
	}
	switch {
	case name == "" || name == "." || name == "..":
		return bad("not a name")
	case !utf8.ValidString(name):
		return bad("not UTF-8")
	case strings.ContainsAny(name, `/\:*?;`):
		return bad(`must not have any of / \ : * ? ;`)
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("has a control character")
	case len(name) > maxNameBytes || len(ucs2(name)) > 2*maxNameUnits:
		return bad(fmt.Sprintf("longer than %d characters or %d bytes", maxNameUnits, maxNameBytes))
	}
	return nil
}

func makeEntries(files map[string][]byte) ([]*entry, error) {
	var entries []*entry
	taken := make(map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := checkName(name); err != nil {
			return nil, err
		}
		e := &entry{name: name, short: shortName(name), content: files[name]}
		for n := 1; taken[e.short]; n++ {
			e.short = fmt.Sprintf("FILE%04d.;1", n)
		}
		taken[e.short] = true
		entries = append(entries, e)
	}
	return entries, nil
}

// shortName is the name by ISO 9660's level 1: at most 8.3 capitals, digits and '_'.
func shortName(name string) string {
	clean := func(text string, size int) string {
		text = strings.Map(func(r rune) rune {
			if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return '_'
		}, strings.ToUpper(text))
		return text[:min(len(text), size)]
	}
	base, extension := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		base, extension = name[:i], name[i+1:]
	}
	return clean(base, 8) + "." + clean(extension, 3) + ";1"
}

func ucs2(text string) string {
	var b []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		b = binary.BigEndian.AppendUint16(b, unit)
	}
	return string(b)
}

// record is a directory record (ECMA-119, 9.1) with its system use area.
func record(date []byte, name string, location, size int, flags byte, systemUse []byte) []byte {
	head := 33 + len(name)
	head += head & 1
	length := head + len(systemUse)
	length += length & 1
	r := make([]byte, length)
	r[0] = byte(length)
	both32(r[2:], location)
	both32(r[10:], size)
	copy(r[18:], date)
	r[25] = flags
	both16(r[28:], 1) // volume
	r[32] = byte(len(name))
	copy(r[33:], name)
	copy(r[head:], systemUse)
	return r
}

func recordDate(at time.Time) []byte {
	at = at.UTC()
	return []byte{
		byte(at.Year() - 1900), byte(at.Month()), byte(at.Day()), byte(at.Hour()), byte(at.Minute()), byte(at.Second()), 0,
	}
}

// systemUse says what Rock Ridge (IEEE P1282) tells of a file.
func (e *entry) systemUse() []byte {
	return slices.Concat(posix(fileMode, 1), field("NM", append([]byte{0}, e.name...)))
}

// rootSystemUse marks the volume as one with Rock Ridge, and says where the rest of that is.
func rootSystemUse() []byte {
	rest := make([]byte, 24)
	both32(rest, continuation)
	both32(rest[16:], len(rockRidgeIdentification()))
	return slices.Concat(field("SP", []byte{0xbe, 0xef, 0}), posix(directoryMode, 2), field("CE", rest))
}

// posix is mode, number of links, and root as owner.
func posix(mode, links int) []byte {
	px := make([]byte, 32)
	both32(px, mode)
	both32(px[8:], links)
	return field("PX", px)
}

func rockRidgeIdentification() []byte {
	id := "RRIP_1991A"
	about := "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS"
	source := "PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY VOLUME DESCRIPTOR FOR CONTACT INFORMATION."
	return field("ER", slices.Concat([]byte{byte(len(id)), byte(len(about)), byte(len(source)), 1}, []byte(id+about+source)))
}

// field is one entry of a system use area.
func field(signature string, data []byte) []byte {
	return slices.Concat([]byte(signature), []byte{byte(4 + len(data)), 1}, data)
}
