package iscsi

import (
	"fmt"
	"strconv"
	"strings"

	"hayloft/disk/repository"
	"hayloft/internal/lvm"
)

const (
	objectPrefix = "hl-"
	partPrefix   = "hlp-" // of volumes that are being written
	deadPrefix   = "hld-" // of volumes that are being deleted
	copyPrefix   = "hlf-" // of volumes that stand for a snapshot, or will: see Flatten
)

// encode makes a name that LVM takes, and its tags: letters, digits, "." and "-" stay, "/" is "+", other bytes are "_"
// and their number in hexadecimal.
func encode(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c == '/':
			b.WriteByte('+')
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "_%02X", c)
		}
	}
	return b.String()
}

// decode is the opposite of encode; false for what encode does not make.
func decode(text string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '+':
			b.WriteByte('/')
		case '_':
			if i+3 > len(text) {
				return "", false
			}
			c, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
			if err != nil {
				return "", false
			}
			b.WriteByte(byte(c))
			i += 2
		default:
			b.WriteByte(text[i])
		}
	}
	return b.String(), encode(b.String()) == text
}

// check refuses (fault.Invalid) names that have no volume: also those that are too long for LVM.
func (r *Repository) check(names ...string) error {
	for _, name := range names {
		if err := repository.CheckName(name); err != nil {
			return err
		}
		if err := lvm.CheckVolume(r.group, partPrefix+encode(name)); err != nil {
			return r.object(name, err)
		}
	}
	return nil
}

// nameOf is the object that a volume is, with a prefix.
func nameOf(volume, prefix string) (string, bool) {
	text, ok := strings.CutPrefix(volume, prefix)
	if !ok {
		return "", false
	}
	name, ok := decode(text)
	return name, ok && repository.CheckName(name) == nil
}

// objectName is the object that a volume is, if its name is that of one.
func objectName(volume string) (string, bool) {
	if name, ok := nameOf(volume, objectPrefix); ok {
		return name, true
	}
	return nameOf(volume, copyPrefix)
}
