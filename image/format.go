package image

import (
	"bytes"
	"encoding/binary"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Format is how the bytes of an image are laid out.
type Format string

// The formats. Raw, the tars and squashfs are stored as they are; the other disk formats become raw.
const (
	Raw      Format = "raw"
	ISO      Format = "iso" // stored as raw
	QCOW2    Format = "qcow2"
	VMDK     Format = "vmdk"
	VHDX     Format = "vhdx"
	VHD      Format = "vpc" // qemu-img's name for it
	VDI      Format = "vdi"
	Tar      Format = "tar"
	TarGzip  Format = "tar.gz"
	TarZstd  Format = "tar.zst"
	SquashFS Format = "squashfs"

	// Gzip, Zstd and XZ are compressed files with something else than an archive inside; they are refused.
	Gzip Format = "gzip"
	Zstd Format = "zstd"
	XZ   Format = "xz"
)

// IsTree reports whether the format holds a directory tree and not a disk.
func (f Format) IsTree() bool { return f.IsTar() || f == SquashFS }

// IsTar reports whether the format is a tar, compressed or not.
func (f Format) IsTar() bool { return f == Tar || f == TarGzip || f == TarZstd }

// foreign formats are converted by qemu-img.
func (f Format) foreign() bool {
	return f == QCOW2 || f == VMDK || f == VHDX || f == VHD || f == VDI
}

const detectBytes = 0x8006 // up to the end of the ISO 9660 mark

// Detect tells the format from the first bytes of r, never from a name. What nothing else matches is raw.
func Detect(r io.ReaderAt) (Format, error) {
	head := make([]byte, detectBytes)
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	head = head[:n]
	for _, m := range []struct {
		offset int
		magic  string
		format Format
	}{
		{0, "QFI\xfb", QCOW2}, {0, "KDMV", VMDK}, {0, "COWD", VMDK}, {0, "# Disk DescriptorFile", VMDK},
		{0, "vhdxfile", VHDX}, {0, "conectix", VHD}, {0x40, "\x7f\x10\xda\xbe", VDI},
		{0, "hsqs", SquashFS}, {0, "\xfd7zXZ\x00", XZ}, {0x8001, "CD001", ISO},
	} {
		if len(head) >= m.offset+len(m.magic) && string(head[m.offset:m.offset+len(m.magic)]) == m.magic {
			return m.format, nil
		}
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		if z, err := gzip.NewReader(bytes.NewReader(head)); err == nil && startsAsTar(z) {
			return TarGzip, nil
		}
		return Gzip, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		if z, err := zstd.NewReader(bytes.NewReader(head), zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
			if startsAsTar(z) {
				return TarZstd, nil
			}
			// A large first block may need more than the head; ask the whole file.
			if whole, err := zstd.NewReader(io.NewSectionReader(r, 0, 1<<62), zstd.WithDecoderConcurrency(1)); err == nil {
				defer whole.Close()
				if startsAsTar(whole) {
					return TarZstd, nil
				}
			}
		}
		return Zstd, nil
	case startsAsTar(bytes.NewReader(head)):
		return Tar, nil
	}
	return Raw, nil
}

// startsAsTar looks at one 512-byte header: the ustar mark, or for the oldest tars a checksum that is right.
func startsAsTar(r io.Reader) bool {
	block := make([]byte, 512)
	if _, err := io.ReadFull(r, block); err != nil {
		return false
	}
	want, err := strconv.ParseUint(strings.Trim(string(block[148:156]), " \x00"), 8, 32)
	if err != nil || binary.BigEndian.Uint64(block) == 0 {
		return false
	}
	var sum uint64
	for i, b := range block {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += uint64(b)
	}
	return sum == want
}
