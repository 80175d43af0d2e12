package nbd

import "encoding/binary"

// request is a request message without its payload.
type request struct {
	flags   uint16
	command uint16
	cookie  uint64
	offset  uint64
	length  uint32
}

// parseRequest reads the first requestSize bytes of p; not ok without the magic.
func parseRequest(p []byte) (r request, ok bool) {
	_ = p[requestSize-1]
	if binary.BigEndian.Uint32(p) != magicRequest {
		return request{}, false
	}
	return request{
		flags:   binary.BigEndian.Uint16(p[4:]),
		command: binary.BigEndian.Uint16(p[6:]),
		cookie:  binary.BigEndian.Uint64(p[8:]),
		offset:  binary.BigEndian.Uint64(p[16:]),
		length:  binary.BigEndian.Uint32(p[24:]),
	}, true
}

func (r request) put(p []byte) {
	_ = p[requestSize-1]
	binary.BigEndian.PutUint32(p, magicRequest)
	binary.BigEndian.PutUint16(p[4:], r.flags)
	binary.BigEndian.PutUint16(p[6:], r.command)
	binary.BigEndian.PutUint64(p[8:], r.cookie)
	binary.BigEndian.PutUint64(p[16:], r.offset)
	binary.BigEndian.PutUint32(p[24:], r.length)
}

// terms are what was negotiated.
type terms struct {
	size       int64
	readOnly   bool
	structured bool // NBD_OPT_STRUCTURED_REPLY
	allocation bool // NBD_OPT_SET_META_CONTEXT with base:allocation
}

// allowed are the command flags that each command may have; FUA is valid on all ("Command flags").
var allowed = [...]uint16{
	cmdRead:        cmdFUA | cmdDF,
	cmdWrite:       cmdFUA,
	cmdDisconnect:  cmdFUA,
	cmdFlush:       cmdFUA,
	cmdTrim:        cmdFUA,
	cmdCache:       cmdFUA,
	cmdWriteZeroes: cmdFUA | cmdNoHole | cmdFastZero,
	cmdBlockStatus: cmdFUA | cmdReqOne,
}

// check says what is wrong with a request ("Request types"), 0 for nothing.
func (r *request) check(t *terms) (errno, string) {
	switch {
	case int(r.command) >= len(allowed):
		return errInvalid, "unknown command"
	case r.flags&^allowed[r.command] != 0, r.flags&cmdDF != 0 && !t.structured:
		return errInvalid, "flag that this command does not have"
	case r.command == cmdFlush:
		if r.offset != 0 || r.length != 0 {
			return errInvalid, "flush with offset or length"
		}
		return 0, ""
	case t.readOnly && (r.command == cmdWrite || r.command == cmdTrim || r.command == cmdWriteZeroes):
		return errPermission, "the export is read-only"
	case (r.command == cmdRead || r.command == cmdWrite) && r.length > maxPayload:
		return errInvalid, "more than 32 MiB"
	case r.offset > uint64(t.size) || uint64(r.length) > uint64(t.size)-r.offset:
		if r.command == cmdWrite || r.command == cmdWriteZeroes {
			return errNoSpace, "beyond the end"
		}
		return errInvalid, "beyond the end"
	case r.command == cmdBlockStatus && !t.allocation:
		return errInvalid, "no metadata context was negotiated"
	case r.command == cmdBlockStatus && r.length == 0:
		return errInvalid, "block status of nothing"
	case r.flags&cmdDF != 0 && r.length > maxUnfragmented:
		return errOverflow, "too long to be sent as one chunk"
	}
	return 0, ""
}
