package nbd

import (
	"sync"
	"sync/atomic"
)

// longWrite is a write that comes in pieces.
type longWrite struct {
	pending atomic.Int32 // pieces
	mu      sync.Mutex
	err     error
}

func (w *longWrite) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// pieceAt is how long the piece is that begins at an offset, of a payload that has rest bytes left.
func pieceAt(offset uint64, rest int) int {
	return min(rest, piece-int(offset%writeAlign))
}

// write receives a payload. One that fits into the buffer is written at once when it is a hit; with FUA nothing is.
func (c *connection) write(r *request) error {
	length := int(r.length)
	if length > len(c.in) {
		return c.writeLong(r)
	}
	if err := c.need(length); err != nil {
		return err
	}
	p := c.in[c.start : c.start+length]
	c.start += length
	return c.writeShort(r, p)
}

// writeLong receives a payload piece by piece, each while the one before is being stored.
func (c *connection) writeLong(r *request) error {
	if c.pieces == nil {
		c.pieces = make(chan *job, piecesAhead)
		go c.storePieces()
	}
	length := int(r.length)
	w := c.share.budget.longWrite()
	for done := 0; done < length; done += pieceAt(r.offset+uint64(done), length-done) {
		w.pending.Add(1)
	}
	for done := 0; done < length; {
		n := pieceAt(r.offset+uint64(done), length-done)
		j, err := c.take(r, n)
		if err != nil {
			return err
		}
		if err := c.receiveInto(j.payload(n)); err != nil {
			c.share.give(j)
			return err // pieces that are under way are waited for by the share
		}
		j.write, j.at, j.n = w, int64(r.offset)+int64(done), n
		c.pieces <- j
		done += n
	}
	return nil
}

// storePieces writes what is a hit in the order in which it came. It ends with the connection.
func (c *connection) storePieces() {
	for j := range c.pieces {
		if c.quick != nil && j.flags&cmdFUA == 0 {
			hit, err := c.quick.TryWriteAt(j.payload(j.n), j.at)
			if err != nil {
				j.write.fail(err)
			}
			if hit || err != nil {
				j.pieceDone()
				c.share.give(j)
				continue
			}
		}
		go j.writePiece()
	}
}

// writeShort writes a payload that is in the receive buffer.
func (c *connection) writeShort(r *request, p []byte) error {
	if len(p) == 0 {
		return c.answer(r)
	}
	if c.quick != nil && r.flags&cmdFUA == 0 {
		hit, err := c.quick.TryWriteAt(p, int64(r.offset))
		if err != nil {
			return c.answerError(r, errnoOf(err), err.Error())
		}
		if hit {
			c.server.written.Add(int64(len(p)))
			return c.answer(r)
		}
	}
	j, err := c.take(r, len(p))
	if err != nil {
		return err
	}
	copy(j.payload(len(p)), p)
	go j.writeWhole()
	return nil
}

func (j *job) writeWhole() {
	c := j.c
	defer c.share.give(j)
	err := c.device.WriteAt(c.ctx, j.payload(int(j.length)), int64(j.offset), j.flags&cmdFUA != 0)
	if err != nil {
		j.fail(err)
		return
	}
	c.server.written.Add(int64(j.length))
	j.succeed()
}

func (j *job) writePiece() {
	defer j.c.share.give(j)
	if err := j.c.device.WriteAt(j.c.ctx, j.payload(j.n), j.at, false); err != nil {
		j.write.fail(err)
	}
	j.pieceDone()
}

// pieceDone answers after the last piece; FUA is a flush then.
func (j *job) pieceDone() {
	w, c := j.write, j.c
	if w.pending.Add(-1) > 0 {
		return
	}
	err := w.err
	if err == nil && j.flags&cmdFUA != 0 {
		err = c.device.Flush(c.ctx)
	}
	c.share.budget.putLongWrite(w)
	if err != nil {
		j.fail(err)
		return
	}
	c.server.written.Add(int64(j.length))
	j.succeed()
}
