package nbd

import "encoding/binary"

// maxMessage is how long the text of an error gets.
const maxMessage = 512

// putSimple puts a simple reply into p.
func putSimple(p []byte, cookie uint64, e errno) int {
	_ = p[simpleSize-1]
	binary.BigEndian.PutUint32(p, magicSimple)
	binary.BigEndian.PutUint32(p[4:], uint32(e))
	binary.BigEndian.PutUint64(p[8:], cookie)
	return simpleSize
}

// putChunk puts the head of a structured reply chunk with a payload of length bytes into p.
func putChunk(p []byte, flags, kind uint16, cookie uint64, length int) int {
	_ = p[chunkSize-1]
	binary.BigEndian.PutUint32(p, magicStructured)
	binary.BigEndian.PutUint16(p[4:], flags)
	binary.BigEndian.PutUint16(p[6:], kind)
	binary.BigEndian.PutUint64(p[8:], cookie)
	binary.BigEndian.PutUint32(p[16:], uint32(length))
	return chunkSize
}

// putData puts what precedes length bytes of content into p, which has room for dataSize bytes.
func putData(p []byte, r *request, t *terms, offset uint64, length int) int {
	if !t.structured {
		return putSimple(p, r.cookie, 0)
	}
	var flags uint16
	if offset+uint64(length) == r.offset+uint64(r.length) {
		flags = replyDone
	}
	putChunk(p, flags, replyData, r.cookie, 8+length)
	binary.BigEndian.PutUint64(p[chunkSize:], offset)
	return dataSize
}

// headSize is how much putData puts.
func (t *terms) headSize() int {
	if t.structured {
		return dataSize
	}
	return simpleSize
}

// putError puts an error's reply into p, which has room for maxError bytes.
func putError(p []byte, r *request, t *terms, e errno, message string) int {
	if !t.structured {
		return putSimple(p, r.cookie, e)
	}
	message = message[:min(len(message), maxMessage)]
	n := putChunk(p, replyDone, replyError, r.cookie, 6+len(message))
	binary.BigEndian.PutUint32(p[n:], uint32(e))
	binary.BigEndian.PutUint16(p[n+4:], uint16(len(message)))
	return n + 6 + copy(p[n+6:], message)
}

const maxError = chunkSize + 6 + maxMessage

// putDone puts the reply to a request that succeeded and gives nothing back. It is simple where that is allowed, as
// that is shorter: only to NBD_CMD_READ a structured one must be given.
func putDone(p []byte, r *request, t *terms) int {
	if t.structured && r.command == cmdRead {
		return putChunk(p, replyDone, replyNone, r.cookie, 0)
	}
	return putSimple(p, r.cookie, 0)
}
