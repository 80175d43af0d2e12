package volume

import (
	"encoding/binary"
	"hash/crc32"

	"hayloft/cloud/fault"
)

// The log file: two copies of a header, of which that with the greater generation counts, then a ring of records.
// A position is a byte in the endless sequence of all records; it lies at logStart + position % ring. Records start
// at multiples of 512 and do not go around the end: a pad fills what is left there. Numbers are little-endian.
//
// Header: 0 crc32c of the rest, 4 version, 8 magic, 16 identity of the log, 24 generation, 32 ring, 40 position of the
// tail, 48 its sequence number, 56 its epoch, 64 position up to which records are durable. 128 bytes.
//
// Record: 0 crc32c of the rest of its header, 4 crc32c of the payload, 8 magic, 12 kind, 16 identity of the log,
// 24 sequence number, 32 position, 40 epoch, 48 offset, 56 length, 64 position up to which records were durable when it
// was written, 72 zeros. 80 bytes, then the payload of a write. The length of a pad is its own.
const (
	logVersion = 1
	logAlign   = 512
	logSlot    = 4096 // of a header's copy
	logStart   = 2 * logSlot
	headerSize = 128
	recordSize = 80

	minLog     = 1 << 20
	defaultLog = 256 << 20
	maxLog     = 1 << 40
	maxPayload = 1 << 20 // an eighth of the ring, if that is less
)

var (
	headerMagic = [8]byte{'H', 'A', 'Y', 'L', 'L', 'O', 'G', '\n'}
	recordMagic = uint32(0x43524c48)
)

type recordKind uint32

const (
	writeRecord recordKind = iota + 1
	zeroRecord
	zeroNoHoleRecord
	endRecord // of its epoch
	padRecord
)

type logHeader struct {
	id, generation uint64
	ring           int64
	tail           uint64
	sequence       uint64
	epoch          uint64
	durable        uint64
}

func (h *logHeader) encode(b []byte) {
	clear(b[:headerSize])
	binary.LittleEndian.PutUint32(b[4:], logVersion)
	copy(b[8:], headerMagic[:])
	for i, v := range []uint64{h.id, h.generation, uint64(h.ring), h.tail, h.sequence, h.epoch, h.durable} {
		binary.LittleEndian.PutUint64(b[16+8*i:], v)
	}
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:headerSize], castagnoli))
}

// parseHeader reads one copy; fault.Corrupt for what is none.
func parseHeader(b []byte) (h logHeader, err error) {
	if len(b) < headerSize || [8]byte(b[8:16]) != headerMagic || binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:headerSize], castagnoli) {
		return h, fault.Errorf(fault.Corrupt, "log: header")
	}
	if version := binary.LittleEndian.Uint32(b[4:]); version != logVersion {
		return h, fault.Errorf(fault.Unsupported, "log: version %d, this program reads %d", version, logVersion)
	}
	u := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	h = logHeader{id: u(16), generation: u(24), ring: int64(u(32)), tail: u(40), sequence: u(48), epoch: u(56), durable: u(64)}
	if h.ring < minLog || h.ring > maxLog || h.ring%logAlign != 0 || h.tail%logAlign != 0 || h.tail > posMask/2 ||
		h.durable > h.tail+uint64(h.ring) {
		return h, fault.Errorf(fault.Corrupt, "log: header: ring %d, tail %d, durable %d", h.ring, h.tail, h.durable)
	}
	return h, nil
}

type record struct {
	kind       recordKind
	id         uint64
	sequence   uint64
	pos        uint64
	epoch      uint64
	offset     int64
	length     int64
	durable    uint64
	payloadCRC uint32
}

// size is what a record takes up in the log.
func (r *record) size() int64 {
	switch r.kind {
	case writeRecord:
		return alignLog(recordSize + r.length)
	case padRecord:
		return r.length
	}
	return logAlign
}

func alignLog(n int64) int64 { return (n + logAlign - 1) / logAlign * logAlign }

func (r *record) encode(b []byte) {
	binary.LittleEndian.PutUint32(b[4:], r.payloadCRC)
	binary.LittleEndian.PutUint32(b[8:], recordMagic)
	binary.LittleEndian.PutUint32(b[12:], uint32(r.kind))
	binary.LittleEndian.PutUint64(b[16:], r.id)
	binary.LittleEndian.PutUint64(b[24:], r.sequence)
	binary.LittleEndian.PutUint64(b[32:], r.pos)
	binary.LittleEndian.PutUint64(b[40:], r.epoch)
	binary.LittleEndian.PutUint64(b[48:], uint64(r.offset))
	binary.LittleEndian.PutUint64(b[56:], uint64(r.length))
	binary.LittleEndian.PutUint64(b[64:], r.durable)
	binary.LittleEndian.PutUint64(b[72:], 0)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:recordSize], castagnoli))
}

// parseRecord reads a record's header; ok is false for anything that no log of this ring and volume can have there.
func parseRecord(b []byte, id uint64, pos uint64, ring, size int64) (r record, ok bool) {
	if len(b) < recordSize || binary.LittleEndian.Uint32(b[8:]) != recordMagic ||
		binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:recordSize], castagnoli) {
		return r, false
	}
	u := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	r = record{
		payloadCRC: binary.LittleEndian.Uint32(b[4:]), kind: recordKind(binary.LittleEndian.Uint32(b[12:])),
		id: u(16), sequence: u(24), pos: u(32), epoch: u(40), offset: int64(u(48)), length: int64(u(56)), durable: u(64),
	}
	if r.id != id || r.pos != pos {
		return r, false
	}
	rest := ring - int64(pos%uint64(ring))
	switch r.kind {
	case writeRecord:
		ok = r.length > 0 && r.length <= maxPayload && r.inside(size) && r.size() <= rest
	case zeroRecord, zeroNoHoleRecord:
		ok = r.length > 0 && r.inside(size)
	case endRecord:
		ok = r.length == 0
	case padRecord:
		ok = r.length == rest
	}
	return r, ok
}

func (r *record) inside(size int64) bool {
	return r.offset >= 0 && r.length >= 0 && r.offset <= size-r.length
}

// span is where the record's content is.
func (r *record) span() span {
	s := span{start: r.offset, end: r.offset + r.length, pos: r.pos}
	switch r.kind {
	case writeRecord:
		s.pos += recordSize
	case zeroRecord:
		s.pos |= zeroSpan
	case zeroNoHoleRecord:
		s.pos |= zeroSpan | noHoleSpan
	}
	return s
}
