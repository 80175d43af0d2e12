package url

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"hayloft/cloud/fault"
)

const (
	headerBytes   = 512
	maxDescriptor = 1 << 20
)

// whole refuses what is not an image of the format (fault.Corrupt), and what refers to other files (fault.Invalid):
// QEMU would open those.
func whole(format string, size int64, r io.ReaderAt) error {
	head := make([]byte, headerBytes)
	n, err := r.ReadAt(head, 0)
	if format == "vmdk" && strings.HasPrefix(string(head[:n]), "# Disk DescriptorFile") {
		return refuse("extents in other files", "")
	}
	if n < len(head) {
		if err == nil || errors.Is(err, io.EOF) {
			err = fault.Errorf(fault.Corrupt, "ends at byte %d: is no %s", n, format)
		}
		return err
	}
	magic := map[string]struct {
		offset int
		text   string
	}{"qcow2": {0, "QFI\xfb"}, "vmdk": {0, "KDMV"}, "vhdx": {0, "vhdxfile"}, "vdi": {0x40, "\x7f\x10\xda\xbe"}}[format]
	if string(head[magic.offset:][:len(magic.text)]) != magic.text {
		return fault.Errorf(fault.Corrupt, "is no %s", format)
	}
	switch format {
	case "qcow2":
		return wholeQCOW2(head, size)
	case "vmdk":
		return wholeVMDK(head, r)
	case "vdi":
		return wholeVDI(head, size)
	}
	return nil // QEMU does not open parents of vhdx
}

func refuse(kind, name string) error {
	if name != "" {
		kind += " " + strings.ToValidUTF8(name, "?")
	}
	return fault.Errorf(fault.Invalid, "has %s: an image must be whole in itself", kind)
}

// wholeQCOW2 follows QEMU's docs/interop/qcow2.txt, "Header".
func wholeQCOW2(head []byte, size int64) error {
	const externalData = 1 << 2
	be := binary.BigEndian
	table, entries := be.Uint64(head[40:]), be.Uint32(head[36:])
	switch version := be.Uint32(head[4:]); {
	case version != 2 && version != 3:
		return fault.Errorf(fault.Corrupt, "is qcow2 of version %d", version)
	case be.Uint64(head[8:]) != 0 || be.Uint32(head[16:]) != 0:
		return refuse("a backing file", "")
	case version == 3 && be.Uint64(head[72:])&externalData != 0:
		return refuse("an external data file", "")
	case table > uint64(size) || uint64(entries)*8 > uint64(size)-table:
		return fault.Errorf(fault.Corrupt, "is cut off: its table of %d entries is at %d of %d bytes", entries, table, size)
	case be.Uint32(head[32:]) != 0:
		return fault.Errorf(fault.Unsupported, "is encrypted")
	}
	return nil
}

// wholeVDI finds what is cut off, which QEMU reads as zeros.
func wholeVDI(head []byte, size int64) error {
	le := binary.LittleEndian
	data, block, extra, allocated := int64(le.Uint32(head[0x158:])), int64(le.Uint32(head[0x178:])), int64(le.Uint32(head[0x17c:])), int64(le.Uint32(head[0x184:]))
	if want := data + (block+extra)*allocated; want > size {
		return fault.Errorf(fault.Corrupt, "is cut off: %d bytes of %d", size, want)
	}
	return nil
}

// wholeVMDK follows VMware's "Virtual Disk Format": a sparse extent with its descriptor inside.
func wholeVMDK(head []byte, r io.ReaderAt) error {
	le := binary.LittleEndian
	if le.Uint64(head[12:]) == 0 {
		return refuse("extents in other files", "")
	}
	offset, size := le.Uint64(head[28:]), le.Uint64(head[36:])
	if offset == 0 || offset > 1<<40 || size == 0 || size > maxDescriptor/512 {
		return fault.Errorf(fault.Corrupt, "has no descriptor: %d sectors at %d", size, offset)
	}
	text := make([]byte, size*512)
	if n, err := r.ReadAt(text, int64(offset*512)); n < len(text) {
		if err == nil || errors.Is(err, io.EOF) {
			err = fault.Errorf(fault.Corrupt, "ends in its descriptor")
		}
		return err
	}
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n\x00"), "=")
		value = strings.Trim(value, `" `)
		switch key = strings.TrimSpace(key); {
		case !ok:
		case key == "createType" && value != "monolithicSparse" && value != "streamOptimized":
			return refuse("extents of type", value)
		case key == "parentFileNameHint", key == "parentCID" && !strings.EqualFold(value, "ffffffff"):
			return refuse("the parent", value)
		}
	}
	return nil
}
