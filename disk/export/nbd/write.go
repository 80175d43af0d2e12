package nbd

import (
	"sync"
	"sync/atomic"
)

// longWrite is a write that comes in pieces, some of which are not hits.
type longWrite struct {
	pending atomic.Int32 // pieces, and one for the reader
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

// write receives a payload, piece by piece when it does not fit into the buffer. What is a hit is written at once.
// With FUA nothing is a hit.
func (c *connection) write(r *request) error {
	length := int(r.length)
	quick := c.quick
	if r.flags&cmdFUA != 0 {
		quick = nil
	}
	if length <= len(c.in) {
		if err := c.need(length); err != nil {
			return err
		}
		p := c.in[c.start : c.start+length]
		c.start += length
		return c.writeShort(r, p)
	}
	var w *longWrite
	var failed error
	for done := 0; done < length; {
		at := r.offset + uint64(done)
		n := min(length-done, len(c.in)-int((at+uint64(len(c.in)))%writeAlign))
		if err := c.need(n); err != nil {
			return err // pieces that are under way are waited for by the share
		}
		p := c.in[c.start : c.start+n]
		c.start += n
		done += n
		if failed != nil {
			continue
		}
		if quick != nil {
			hit, err := quick.TryWriteAt(p, int64(at))
			if failed = err; hit || err != nil {
				continue
			}
		}
		if w == nil {
			w = &longWrite{}
			w.pending.Store(1)
		}
		w.pending.Add(1)
		j, err := c.take(r, n)
		if err != nil {
			return err
		}
		j.write = w
		copy(j.payload(n), p)
		go j.writePiece(int64(at), n)
	}
	switch {
	case w != nil:
		if failed != nil {
			w.fail(failed)
		}
		j, err := c.take(r, 0)
		if err != nil {
			return err
		}
		j.write = w
		go func() {
			defer c.share.give(j)
			j.pieceDone()
		}()
	case failed != nil:
		return c.answerError(r, errnoOf(failed), failed.Error())
	default:
		c.server.written.Add(int64(length))
		return c.answer(r)
	}
	return nil
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

func (j *job) writePiece(at int64, n int) {
	defer j.c.share.give(j)
	if err := j.c.device.WriteAt(j.c.ctx, j.payload(n), at, false); err != nil {
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
	if w.err == nil && j.flags&cmdFUA != 0 {
		w.err = c.device.Flush(c.ctx)
	}
	if w.err != nil {
		j.fail(w.err)
		return
	}
	c.server.written.Add(int64(j.length))
	j.succeed()
}
