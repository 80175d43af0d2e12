package nbd

import "hayloft/cloud/fault"

// read answers a read that is a hit, and hands others, or the rest of it, to a goroutine.
func (c *connection) read(r *request) error {
	if c.quick == nil {
		return c.slowRead(r, 0)
	}
	length := int(r.length)
	if length >= largeRead && !c.noSendFile {
		if fd, at, ok := c.quick.TryFile(int64(r.offset), length); ok {
			return c.readFile(r, fd, at)
		}
	}
	head := c.terms.headSize()
	if !c.terms.structured || r.flags&cmdDF != 0 { // in one
		if head+length > len(c.out) {
			return c.slowRead(r, 0)
		}
	}
	for done := 0; done < length; {
		n := min(length-done, len(c.out)-head)
		if err := c.room(head + n); err != nil {
			return err
		}
		p := c.out[c.outEnd:]
		at := r.offset + uint64(done)
		hit, err := c.quick.TryReadAt(p[head:head+n], int64(at))
		if err != nil {
			return c.answerError(r, errnoOf(err), err.Error())
		}
		if !hit {
			return c.slowRead(r, done)
		}
		putData(p, r, &c.terms, at, n)
		c.outEnd += head + n
		done += n
	}
	c.server.read.Add(int64(length))
	return nil
}

// readFile answers with one chunk out of a file. On a unix socket the pages themselves are queued, so that the client
// may see what is written to that place of the file until it has read the reply; not what is punched out of it.
func (c *connection) readFile(r *request, fd uintptr, at int64) error {
	length := int(r.length)
	if err := c.room(dataSize); err != nil {
		return err
	}
	head := c.outEnd
	c.outEnd += putData(c.out[head:], r, &c.terms, r.offset, length)
	c.sending.Lock()
	defer c.sending.Unlock()
	err := c.sendLocked(c.out[:c.outEnd])
	c.outEnd = 0
	if err != nil {
		return err
	}
	sent, err := c.sock.sendFile(fd, at, length)
	if err == nil && sent < length { // this kernel or file system does not
		c.noSendFile = true
		err = c.sendRest(r, sent)
	}
	if err != nil {
		c.breakOff() // the head promised the bytes
		return err
	}
	c.server.read.Add(int64(length))
	return nil
}

// sendRest sends the content after the first done bytes, whose head was sent. Holds sending.
func (c *connection) sendRest(r *request, done int) error {
	for done < int(r.length) {
		p := c.out[:min(len(c.out), int(r.length)-done)] // nothing is in it
		if err := c.device.ReadAt(c.ctx, p, int64(r.offset)+int64(done)); err != nil {
			return err
		}
		if err := c.sendLocked(p); err != nil {
			return err
		}
		done += len(p)
	}
	return nil
}

// slowRead has the content after the first done bytes read elsewhere.
func (c *connection) slowRead(r *request, done int) error {
	j, err := c.take(r, min(int(r.length)-done, piece))
	if err == nil {
		go j.read(done)
	}
	return err
}

// read answers a read whose first done bytes were sent in chunks.
func (j *job) read(done int) {
	c := j.c
	defer c.share.give(j)
	length := int(j.length)
	if !c.terms.structured && length > piece {
		j.readWhole()
		return
	}
	head := c.terms.headSize()
	for done < length {
		n := min(length-done, piece)
		at := j.offset + uint64(done)
		if err := c.device.ReadAt(c.ctx, j.payload(n), int64(at)); err != nil {
			j.fail(err)
			return
		}
		message := j.room[headroom-head : headroom+n]
		putData(message, &j.request, &c.terms, at, n)
		if c.send(message) != nil {
			return
		}
		done += n
	}
	c.server.read.Add(int64(length))
}

// readWhole answers with a simple reply that is longer than the buffer: nothing else can be sent in between, so that
// all of it is brought here first, where the Device has a place for that.
func (j *job) readWhole() {
	c := j.c
	if err := c.device.Prefetch(c.ctx, int64(j.offset), int64(j.length)); err != nil && !fault.Is(err, fault.Unsupported) {
		j.fail(err)
		return
	}
	first := j.payload(piece)
	if err := c.device.ReadAt(c.ctx, first, int64(j.offset)); err != nil {
		j.fail(err)
		return
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	putSimple(j.room[headroom-simpleSize:], j.cookie, 0)
	if c.sendLocked(j.room[headroom-simpleSize:headroom+piece]) != nil {
		return
	}
	for done := piece; done < int(j.length); {
		p := j.payload(min(piece, int(j.length)-done))
		err := c.device.ReadAt(c.ctx, p, int64(j.offset)+int64(done))
		if err == nil {
			err = c.sendLocked(p)
		}
		if err != nil {
			c.breakOff()
			return
		}
		done += len(p)
	}
	c.server.read.Add(int64(j.length))
}

// fail answers with an error, unless the connection is ending: then the client is to ask again elsewhere.
func (j *job) fail(err error) {
	c := j.c
	if c.ctx.Err() != nil {
		c.breakOff()
		return
	}
	var room [maxError]byte
	_ = c.send(room[:putError(room[:], &j.request, &c.terms, errnoOf(err), err.Error())])
}

// succeed answers a request that gives nothing back.
func (j *job) succeed() {
	var room [chunkSize]byte
	_ = j.c.send(room[:putDone(room[:], &j.request, &j.c.terms)])
}
