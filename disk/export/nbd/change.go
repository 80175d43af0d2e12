package nbd

import (
	"encoding/binary"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

// maxDescriptors is how many extents one reply describes; a client asks again for the rest.
const maxDescriptors = 2048

// change serves a command other than reading and writing.
func (j *job) change() {
	c := j.c
	defer c.share.give(j)
	offset, length := int64(j.offset), int64(j.length)
	fua := j.flags&cmdFUA != 0
	var err error
	switch j.command {
	case cmdFlush:
		err = c.device.Flush(c.ctx)
	case cmdCache:
		if length > 0 {
			err = c.device.Prefetch(c.ctx, offset, length)
		}
	case cmdTrim:
		if length > 0 {
			err = c.device.Zero(c.ctx, offset, length, export.ZeroFlags{Trim: true, FUA: fua})
		}
		if fault.Is(err, fault.Unsupported) { // "the server MAY discard": it need not
			err = nil
		}
	case cmdWriteZeroes:
		if length > 0 {
			err = c.device.Zero(c.ctx, offset, length,
				export.ZeroFlags{NoHole: j.flags&cmdNoHole != 0, Fast: j.flags&cmdFastZero != 0, FUA: fua})
		}
	case cmdBlockStatus:
		j.blockStatus()
		return
	}
	if err != nil {
		j.fail(err)
		return
	}
	j.succeed()
}

// blockStatus answers with the extents of base:allocation, see "Structured reply types".
func (j *job) blockStatus() {
	c := j.c
	most := maxDescriptors
	if j.flags&cmdReqOne != 0 {
		most = 1
	}
	const first = chunkSize + 4
	p := make([]byte, first, first+8*min(most, 64))
	at, end := int64(j.offset), int64(j.offset)+int64(j.length)
	var last uint32
	err := c.device.Extents(c.ctx, at, end-at, func(e export.Extent) bool {
		next := min(e.Offset+e.Length, end)
		if next <= at {
			return at < end
		}
		length := uint32(next - at)
		at = next
		state := stateOf(e)
		if len(p) > first && state == last {
			grown := p[len(p)-8:]
			binary.BigEndian.PutUint32(grown, binary.BigEndian.Uint32(grown)+length)
			return at < end
		}
		if len(p) == first+8*most {
			return false
		}
		p = binary.BigEndian.AppendUint32(p, length)
		p = binary.BigEndian.AppendUint32(p, state)
		last = state
		return at < end
	})
	if err == nil && len(p) == first {
		err = fault.Errorf(fault.Internal, "no extent at %d", j.offset)
	}
	if err != nil {
		j.fail(err)
		return
	}
	putChunk(p, replyDone, replyStatus, j.cookie, len(p)-chunkSize)
	binary.BigEndian.PutUint32(p[chunkSize:], allocationID)
	_ = c.send(p)
}

func stateOf(e export.Extent) (state uint32) {
	if e.Hole {
		state |= stateHole
	}
	if e.Zero {
		state |= stateZero
	}
	return state
}
