package rbd

import (
	"fmt"
	"strconv"
	"strings"

	"hayloft/disk/repository"
)

const (
	partPrefix  = ".hayloft.part." // of images that are being written
	deadPrefix  = ".hayloft.dead." // of images that are being deleted: id, ".", name
	clonePrefix = "hayloft.clone." // of snapshots that clones are on: time, ".", random
)

// encode makes the name of an image from that of an object: "/" and "@" mean something to Ceph's tools, spaces to the
// kernel, "%" is the sign of what is escaped.
func encode(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; c {
		case '/', '@', '%', ' ':
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// decode is the opposite of encode; false for names that encode does not make.
func decode(image string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(image); i++ {
		if image[i] != '%' {
			b.WriteByte(image[i])
			continue
		}
		if i+3 > len(image) {
			return "", false
		}
		c, err := strconv.ParseUint(image[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		i += 2
	}
	name := b.String()
	return name, repository.CheckName(name) == nil && encode(name) == image
}

func partOf(name string) string { return partPrefix + encode(name) }

// unfinished says what a hidden image was to be or has been.
func unfinished(image string) (name string, ok bool) {
	if part, ok := strings.CutPrefix(image, partPrefix); ok {
		return decode(part)
	}
	if dead, ok := strings.CutPrefix(image, deadPrefix); ok {
		_, rest, _ := strings.Cut(dead, ".")
		return decode(rest)
	}
	return "", false
}

// readable is an image's name for people.
func readable(image string) string {
	if name, ok := decode(image); ok {
		return "object " + name
	}
	if name, ok := unfinished(image); ok {
		return "object " + name + " (unfinished)"
	}
	return "image " + image
}
