// Package qcow2 writes empty qcow2 overlays, so that giving a machine a disk of its own takes microseconds and no
// process. The format is the one of QEMU's docs/interop/qcow2.txt, version 3.
package qcow2

import (
	"encoding/binary"
	"io"

	"hayloft/cloud/fault"
)

const (
	clusterBits = 16
	clusterSize = 1 << clusterBits
	// bytes of disk that one entry of the L1 table stands for: a cluster full of 8-byte L2 entries
	l1Reach       = clusterSize * (clusterSize / 8)
	headerLength  = 104
	maxBackingLen = 1023
	refcountOrder = 4 // 16 bits
)

// MaxSize is the largest disk that Write makes, in bytes: as QEMU's limit of 32 MiB of L1 table.
const MaxSize = (32 << 20) / 8 * l1Reach

// Target is the empty file that an overlay is written to.
type Target interface {
	io.WriterAt
	Truncate(size int64) error
}

// Overlay describes an empty overlay.
type Overlay struct {
	Size          int64  // bytes the machine sees
	Backing       string // path of the base; "" for a disk of zeros
	BackingFormat string // "raw" or "qcow2"
}

// Write writes an overlay without any data of its own into the empty file t. Bytes beyond the backing file's end
// read as zeros.
func Write(t Target, o Overlay) error {
	if o.Size <= 0 || o.Size > MaxSize {
		return fault.Errorf(fault.Invalid, "overlay of %d bytes: must be from 1 to %d", o.Size, int64(MaxSize))
	}
	if len(o.Backing) > maxBackingLen {
		return fault.Errorf(fault.Invalid, "overlay on %s: path has %d bytes, at most %d", o.Backing, len(o.Backing), maxBackingLen)
	}
	l1Entries := (o.Size + l1Reach - 1) / l1Reach
	l1Clusters := (l1Entries*8 + clusterSize - 1) / clusterSize
	// header, refcount table, refcount block, L1 table; one block counts 32768 clusters, enough for MaxSize
	clusters := 3 + l1Clusters
	if err := t.Truncate(clusters * clusterSize); err != nil {
		return err
	}
	counts := make([]byte, 2*clusters)
	for i := range clusters {
		binary.BigEndian.PutUint16(counts[2*i:], 1)
	}
	table := make([]byte, 8)
	binary.BigEndian.PutUint64(table, 2*clusterSize)
	for _, part := range []struct {
		offset int64
		bytes  []byte
	}{{2 * clusterSize, counts}, {clusterSize, table}, {0, header(o, l1Entries)}} {
		if _, err := t.WriteAt(part.bytes, part.offset); err != nil {
			return err
		}
	}
	return nil
}

func header(o Overlay, l1Entries int64) []byte {
	be := binary.BigEndian
	h := make([]byte, headerLength, 2048)
	copy(h, "QFI\xfb")
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], clusterBits)
	be.PutUint64(h[24:], uint64(o.Size))
	be.PutUint32(h[36:], uint32(l1Entries))
	be.PutUint64(h[40:], 3*clusterSize) // L1 table
	be.PutUint64(h[48:], clusterSize)   // refcount table
	be.PutUint32(h[56:], 1)             // its clusters
	be.PutUint32(h[96:], refcountOrder)
	be.PutUint32(h[100:], headerLength)
	if o.Backing != "" && o.BackingFormat != "" {
		h = extension(h, 0xe2792aca, o.BackingFormat)
	}
	h = extension(h, 0, "")
	if o.Backing != "" {
		be.PutUint64(h[8:], uint64(len(h)))
		be.PutUint32(h[16:], uint32(len(o.Backing)))
		h = append(h, o.Backing...)
	}
	return h
}

// extension appends a header extension, padded to 8 bytes.
func extension(h []byte, kind uint32, data string) []byte {
	h = binary.BigEndian.AppendUint32(h, kind)
	h = binary.BigEndian.AppendUint32(h, uint32(len(data)))
	h = append(h, data...)
	for len(h)%8 != 0 {
		h = append(h, 0)
	}
	return h
}

// Read reads size and backing path of an overlay; fault.Corrupt when r is none.
func Read(r io.ReaderAt) (Overlay, error) {
	h := make([]byte, headerLength)
	if _, err := r.ReadAt(h, 0); err != nil {
		return Overlay{}, fault.Errorf(fault.Corrupt, "qcow2 header: %w", err)
	}
	be := binary.BigEndian
	if string(h[:4]) != "QFI\xfb" || be.Uint32(h[4:]) != 3 {
		return Overlay{}, fault.Errorf(fault.Corrupt, "not a qcow2 file of version 3")
	}
	o := Overlay{Size: int64(be.Uint64(h[24:]))}
	if offset, length := be.Uint64(h[8:]), be.Uint32(h[16:]); offset != 0 {
		if offset > clusterSize || length > maxBackingLen {
			return Overlay{}, fault.Errorf(fault.Corrupt, "qcow2 header: backing file name of %d bytes at %d", length, offset)
		}
		name := make([]byte, length)
		if _, err := r.ReadAt(name, int64(offset)); err != nil {
			return Overlay{}, fault.Errorf(fault.Corrupt, "qcow2 header: %w", err)
		}
		o.Backing = string(name)
	}
	return o, nil
}
