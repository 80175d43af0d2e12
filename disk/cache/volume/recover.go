package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/internal/undo"
)

// openLog takes up what the log holds. Nothing is drained before start. closed says that it was closed in order, or is
// new: then nothing lies behind its head.
func openLog(v *volume, closed bool, u *undo.Stack) (*backlog, error) {
	f, err := v.dir.Open(logFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Errorf(fault.Corrupt, "log: there is none, and with it what it held")
	}
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	u.Push(f.Close)
	h, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	l := &backlog{
		v: v, file: f, id: h.id, ring: h.ring, generation: h.generation,
		maxPayload: min(maxPayload, h.ring/8/logAlign*logAlign),
		head:       h.tail, tail: h.tail, sequence: h.sequence, tailNumber: h.sequence,
		epochs: []*epoch{{number: h.epoch, start: h.tail, end: h.tail}},
		kick:   make(chan struct{}, 1), nudge: make(chan struct{}, 1), done: make(chan struct{}),
		syncs: newGroupSync(), marking: newTurn(), direct: newTurn(),
	}
	l.tailNow.Store(h.tail)
	if err := l.recover(h, closed); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	l.life, l.stop = context.WithCancel(v.life)
	return l, nil
}

// start begins to drain, until shut or the end of the volume.
func (l *backlog) start(u *undo.Stack) {
	l.started = true
	l.v.work.Add(1)
	go func() {
		defer l.v.leave()
		l.run()
	}()
	u.Push(func() error { l.stop(); <-l.done; return nil })
}

func readHeader(f storage.File) (logHeader, error) {
	size, err := f.Size()
	if err != nil {
		return logHeader{}, fmt.Errorf("log: %w", err)
	}
	var best logHeader
	var bad error
	found := false
	for slot := range int64(2) {
		b := make([]byte, headerSize)
		if n, err := f.ReadAt(b, slot*logSlot); n < len(b) && err != nil && err != io.EOF {
			return best, fmt.Errorf("log: header: %w", err)
		}
		h, err := parseHeader(b)
		switch {
		case err != nil:
			bad = err
		case !found || h.generation > best.generation:
			best, found = h, true
		}
	}
	if !found {
		return best, bad
	}
	if size != logStart+best.ring {
		return best, fault.Errorf(fault.Corrupt, "log: %d bytes instead of %d", size, logStart+best.ring)
	}
	return best, nil
}

// recover takes the records from the tail on, in unbroken sequence. What comes behind the first that is not right is
// dropped: it was never promised, unless a record says that it was.
func (l *backlog) recover(h logHeader, closed bool) error {
	promised := h.durable
	s := l.scanner(h.tail)
	for int64(s.pos-h.tail) < l.ring {
		r, ok, err := s.record()
		if err != nil {
			return err
		}
		if !ok || r.sequence != l.sequence || r.epoch != l.open().number || int64(s.pos-h.tail)+r.size() > l.ring {
			break
		}
		l.take(r)
		promised = max(promised, r.durable)
		s.pos = l.head
	}
	if !closed {
		if err := l.evidence(&promised); err != nil {
			return err
		}
	}
	if promised > l.head {
		return fault.Errorf(fault.Corrupt, "the record at position %d is damaged, and what was flushed reaches to %d: it holds %d bytes that the source has not",
			l.head, promised, promised-h.tail)
	}
	if !closed {
		// The last run may have died before this header was durable. Until it is, a power cut brings back the one before,
		// and with it a tail whose records must still be there.
		if err := l.putHeader(h); err != nil {
			return err
		}
		// What is left of the future that was dropped must not fit to what is written now.
		if err := l.punchFree(); err != nil {
			return err
		}
		if err := l.rewrite(max(promised, h.tail)); err != nil {
			return err
		}
	}
	l.closeEpoch()
	if err := l.file.Sync(); err != nil {
		return err
	}
	l.durable = l.head
	l.marked = l.head > l.tail
	return nil
}

func (l *backlog) take(r record) {
	e := l.open()
	l.head += uint64(r.size())
	l.sequence++
	e.end = l.head
	switch r.kind {
	case endRecord:
		e.closed, e.endSequence = true, l.sequence
		l.epochs = append(l.epochs, &epoch{number: e.number + 1, start: l.head, end: l.head})
	case padRecord:
	default:
		s := r.span()
		e.spans.put(s)
		l.index.put(s)
	}
}

// evidence looks at what follows the head for records that tell of more that was durable when they were written.
func (l *backlog) evidence(promised *uint64) error {
	s := l.scanner(l.head)
	for end := l.tail + uint64(l.ring); s.pos < end; s.pos += logAlign {
		r, ok, err := s.header()
		if err != nil {
			return err
		}
		if ok && r.sequence > l.sequence {
			*promised = max(*promised, r.durable)
		}
	}
	return nil
}

// rewrite writes what lies between from and the head once more: when a sync of it failed in the last run, the system has
// it in memory only, and does not tell again.
func (l *backlog) rewrite(from uint64) error {
	s := l.scanner(from)
	for s.pos < l.head {
		rest := min(l.head-s.pos, uint64(l.ring)-s.pos%uint64(l.ring))
		b, err := s.bytes(int64(min(rest, scanBytes)))
		if err != nil {
			return err
		}
		if _, err := l.file.WriteAt(b, l.at(s.pos)); err != nil {
			return err
		}
		s.pos += uint64(len(b))
	}
	return nil
}

// punchFree empties the part of the ring that is not in use.
func (l *backlog) punchFree() error {
	free := l.ring - int64(l.head-l.tail)
	first := min(free, l.ring-int64(l.head%uint64(l.ring)))
	if first > 0 {
		if err := l.file.Punch(l.at(l.head), first); err != nil {
			return err
		}
	}
	if free > first {
		return l.file.Punch(logStart, free-first)
	}
	return nil
}

// scanner reads records, a window of the ring at a time.
type scanner struct {
	l      *backlog
	pos    uint64
	window []byte
	from   uint64 // position of the window
}

func (l *backlog) scanner(pos uint64) *scanner { return &scanner{l: l, pos: pos} }

// bytes gives n bytes at pos, which do not go around the ring's end.
func (s *scanner) bytes(n int64) ([]byte, error) {
	if s.pos < s.from || s.pos+uint64(n) > s.from+uint64(len(s.window)) {
		rest := s.l.ring - int64(s.pos%uint64(s.l.ring))
		length := min(max(n, scanBytes), rest)
		if int64(cap(s.window)) < length {
			s.window = make([]byte, length)
		}
		s.window = s.window[:length]
		s.from = s.pos
		if m, err := s.l.file.ReadAt(s.window, s.l.at(s.pos)); m < len(s.window) {
			s.window = s.window[:0]
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	at := s.pos - s.from
	return s.window[at : at+uint64(n)], nil
}

func (s *scanner) header() (record, bool, error) {
	b, err := s.bytes(recordSize)
	if err != nil {
		return record{}, false, err
	}
	r, ok := parseRecord(b, s.l.id, s.pos, s.l.ring, s.l.v.size)
	return r, ok, nil
}

// record also checks the payload.
func (s *scanner) record() (record, bool, error) {
	r, ok, err := s.header()
	if !ok || err != nil || r.kind != writeRecord {
		return r, ok, err
	}
	b, err := s.bytes(recordSize + r.length)
	if err != nil {
		return r, false, err
	}
	return r, crcOf(b[recordSize:]) == r.payloadCRC, nil
}

// resizeLog makes a log anew that is empty, and not started, when the capacity wants it of another size.
func (v *volume) resizeLog(c cache.VolumeConfig, u *undo.Stack) error {
	l := v.back
	if l == nil || l.head != l.tail || l.ring == logSize(c) {
		return nil
	}
	if err := createLog(v.dir, logSize(c)); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	next, err := openLog(v, true, u)
	if err != nil {
		return err
	}
	v.back = next
	return l.file.Close()
}
