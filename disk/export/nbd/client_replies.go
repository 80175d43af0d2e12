package nbd

import (
	"bufio"
	"encoding/binary"
	"io"

	"hayloft/cloud/fault"
)

// readReplies reads until the connection ends or the server breaks the protocol (fault.Corrupt).
func (c *Client) readReplies(in *bufio.Reader) error {
	for {
		if err := c.readReply(in); err != nil {
			return err
		}
	}
}

// broken is an error after which nothing that the server sends can be understood.
func (c *Client) broken(format string, args ...any) error {
	return c.errorf(fault.Corrupt, "the server breaks the protocol: "+format, args...)
}

// find is the call that a reply belongs to.
func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.calls[cookie]
	if q == nil {
		return nil, c.broken("reply to no request")
	}
	return q, nil
}

func (c *Client) finish(q *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(q, q.err)
}

// readReply reads one simple reply or one chunk of a structured one.
func (c *Client) readReply(in *bufio.Reader) error {
	head, err := in.Peek(simpleSize)
	if err != nil {
		return err
	}
	switch binary.BigEndian.Uint32(head) {
	case magicSimple:
		e, cookie := errno(binary.BigEndian.Uint32(head[4:])), binary.BigEndian.Uint64(head[8:])
		_, _ = in.Discard(simpleSize)
		q, err := c.find(cookie)
		if err != nil {
			return err
		}
		return c.simpleReply(in, q, e)
	case magicStructured:
		if head, err = in.Peek(chunkSize); err != nil {
			return err
		}
		if !c.peer.structured {
			return c.broken("structured reply that was not negotiated")
		}
		flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
		cookie, length := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint32(head[16:])
		_, _ = in.Discard(chunkSize)
		q, err := c.find(cookie)
		if err != nil {
			return err
		}
		if err := c.chunk(in, q, kind, length); err != nil || flags&replyDone == 0 {
			return err
		}
		return c.lastChunk(q)
	}
	return c.broken("reply without its magic")
}

func (c *Client) simpleReply(in *bufio.Reader, q *call, e errno) error {
	if q.command == cmdRead && c.peer.structured || q.command == cmdBlockStatus && e == 0 {
		return c.broken("simple reply where a structured one must be")
	}
	switch {
	case e != 0:
		c.refused(q, e, "")
	case q.command == cmdRead:
		if err := c.content(in, q, 0, int64(q.length)); err != nil {
			return err
		}
	}
	c.finish(q)
	return nil
}

// refused keeps the first error of a call.
func (c *Client) refused(q *call, e errno, message string) {
	if q.err != nil {
		return
	}
	if message != "" {
		message = ": " + message
	}
	q.err = c.errorf(e.class(), "%s of %d bytes at %d: %v%s", commandNames[min(int(q.command), len(commandNames)-1)], q.length, q.offset, e, message)
}

var commandNames = [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write-zeroes", "block status"}

// content reads part of what a read gives.
func (c *Client) content(in *bufio.Reader, q *call, from, length int64) error {
	if !c.hold(q) {
		_, err := in.Discard(int(length))
		return err
	}
	_, err := io.ReadFull(in, q.into[from:from+length])
	c.letGo(q)
	return err
}

// chunk reads the payload of a structured reply chunk ("Structured reply types").
func (c *Client) chunk(in *bufio.Reader, q *call, kind uint16, length uint32) error {
	switch {
	case kind == replyNone:
		if length != 0 {
			return c.broken("chunk of no type with a payload")
		}
		return nil
	case kind == replyData && q.command == cmdRead:
		return c.dataChunk(in, q, length)
	case kind == replyHole && q.command == cmdRead && length == 12:
		return c.holeChunk(in, q)
	case kind == replyStatus && q.command == cmdBlockStatus:
		return c.statusChunk(in, q, length)
	case kind&replyErrorBit != 0:
		return c.errorChunk(in, q, length)
	}
	return c.broken("chunk of type %d and %d bytes for a %d", kind, length, q.command)
}

// place checks where content lies; it gives the place within the request.
func (c *Client) place(q *call, offset uint64, length int64) (int64, error) {
	if offset < q.offset || offset-q.offset > uint64(q.length) || length > int64(q.length)-int64(offset-q.offset) {
		return 0, c.broken("content beyond what was asked for")
	}
	if q.got += length; q.got > int64(q.length) {
		return 0, c.broken("more content than was asked for")
	}
	return int64(offset - q.offset), nil
}

func (c *Client) dataChunk(in *bufio.Reader, q *call, length uint32) error {
	if length < 9 {
		return c.broken("chunk with %d bytes of data", length)
	}
	var p [8]byte
	if _, err := io.ReadFull(in, p[:]); err != nil {
		return err
	}
	n := int64(length) - 8
	from, err := c.place(q, binary.BigEndian.Uint64(p[:]), n)
	if err != nil {
		return err
	}
	return c.content(in, q, from, n)
}

func (c *Client) holeChunk(in *bufio.Reader, q *call) error {
	var p [12]byte
	if _, err := io.ReadFull(in, p[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(p[8:]))
	from, err := c.place(q, binary.BigEndian.Uint64(p[:]), n)
	if err != nil {
		return err
	}
	if c.hold(q) {
		clear(q.into[from : from+n])
		c.letGo(q)
	}
	return nil
}

// maxStatus is the longest list of extents that is taken, in bytes.
const maxStatus = 4 + 8*(1<<17)

func (c *Client) statusChunk(in *bufio.Reader, q *call, length uint32) error {
	if length < 12 || length%8 != 4 || length > maxStatus {
		return c.broken("block status of %d bytes", length)
	}
	var p [8]byte
	if _, err := io.ReadFull(in, p[:4]); err != nil {
		return err
	}
	if id := binary.BigEndian.Uint32(p[:]); id != c.peer.contextID || q.extents != nil {
		return c.broken("block status of context %d", id)
	}
	for range (length - 4) / 8 {
		if _, err := io.ReadFull(in, p[:]); err != nil {
			return err
		}
		d := descriptor{binary.BigEndian.Uint32(p[:]), binary.BigEndian.Uint32(p[4:])}
		if d.length == 0 {
			return c.broken("extent of nothing")
		}
		q.extents = append(q.extents, d)
	}
	return nil
}

func (c *Client) errorChunk(in *bufio.Reader, q *call, length uint32) error {
	if length < 6 || length > 6+maxString+8 {
		return c.broken("error of %d bytes", length)
	}
	p := make([]byte, length)
	if _, err := io.ReadFull(in, p); err != nil {
		return err
	}
	e, n := errno(binary.BigEndian.Uint32(p)), int(binary.BigEndian.Uint16(p[4:]))
	if n > len(p)-6 || e == 0 {
		return c.broken("error %d with a message of %d bytes in %d", e, n, length)
	}
	c.refused(q, e, string(p[6:6+n]))
	return nil
}

// lastChunk checks that a reply was whole.
func (c *Client) lastChunk(q *call) error {
	switch {
	case q.err != nil:
	case q.command == cmdRead && q.got != int64(q.length):
		return c.broken("%d of %d bytes", q.got, q.length)
	case q.command == cmdBlockStatus && len(q.extents) == 0:
		return c.broken("block status without extents")
	}
	c.finish(q)
	return nil
}
