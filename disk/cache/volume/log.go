package volume

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
)

// backlog is the log of BACK: what was written and is not in the source yet, in order.
type backlog struct {
	v          *volume
	file       storage.File
	id         uint64
	ring       int64
	maxPayload int64

	// mu orders appends and guards what follows. It is taken before indexMu.
	mu         sync.Mutex
	head       uint64 // position of the next record
	sequence   uint64 // its number
	tail       uint64 // of the oldest record that may be needed, durably
	tailNumber uint64 // its sequence number
	durable    uint64 // records before are
	epochs     []*epoch
	marked     bool // the source carries the mark
	degraded   bool
	urgent     int           // how many wait for the open epoch to be drained too
	changed    chan struct{} // closed when tail, sick, trouble or fenced change; nil when nobody waits
	sick       error         // the log cannot be written: it is to be emptied first
	trouble    error         // why draining does not go on now
	fenced     error         // why it never will
	generation uint64        // of the header
	scratch    [recordSize + inlinePayload]byte

	indexMu sync.RWMutex
	index   spans         // the newest content of what is in the log
	tailNow atomic.Uint64 // tail, for readers

	syncs   groupSync
	marking turn // who changes the mark
	direct  turn // who writes past the log

	started bool
	kick    chan struct{} // wakes the drain when there may be something to do
	nudge   chan struct{} // and when it rests after an error
	life    context.Context
	stop    context.CancelFunc
	done    chan struct{} // the drain has ended
}

// inlinePayload: up to here header and payload are copied together and written at once.
const inlinePayload = 16 << 10

// epoch is what was written between two flushes. The last one is open, the others end with a record that says so.
type epoch struct {
	number      uint64
	start, end  uint64 // positions
	endSequence uint64
	spans       spans // its content, the newest of each range
	closed      bool
	born        time.Time // of its first record
}

func (e *epoch) empty() bool { return e.start == e.end }

// logSize is what the log gets of the capacity.
func logSize(c cache.VolumeConfig) int64 {
	size := min(int64(defaultLog), max(c.Size, minLog))
	if c.Capacity > 0 {
		size = min(size, c.Capacity/2)
	}
	return max(size, minLog) / logSlot * logSlot
}

// createLog makes an empty log; it is there whole or not at all.
func createLog(dir storage.Dir, ring int64) error {
	f, err := dir.Create(logFile + temporary)
	if err != nil {
		return err
	}
	h := logHeader{id: rand.Uint64(), ring: ring, epoch: 1, sequence: 1}
	var b [2 * logSlot]byte
	h.encode(b[:])
	h.generation = 1
	h.encode(b[logSlot:])
	if _, err = f.WriteAt(b[:], 0); err == nil {
		if err = f.Truncate(logStart + ring); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := dir.Rename(logFile+temporary, logFile); err != nil {
		return err
	}
	return dir.Sync()
}

// at is where a position is in the file.
func (l *backlog) at(pos uint64) int64 { return logStart + int64(pos%uint64(l.ring)) }

func (l *backlog) open() *epoch { return l.epochs[len(l.epochs)-1] }

// fits reports whether a record of size bytes, a pad before it and the end of its epoch have room.
func (l *backlog) fits(size int64) bool {
	if rest := l.ring - int64(l.head%uint64(l.ring)); size > rest {
		size += rest
	}
	return int64(l.head-l.tail)+size+logAlign <= l.ring
}

// append writes a record with its payload, both of which the caller checked to fit. Once it returns, a reader finds
// it. After an error it is as if nothing had been written: the next record is put over it.
func (l *backlog) append(r record, payload []byte) error {
	if rest := l.ring - int64(l.head%uint64(l.ring)); r.size() > rest {
		if err := l.write(record{kind: padRecord, epoch: l.open().number, length: rest}, nil); err != nil {
			return err
		}
		l.grown()
	}
	e := l.open()
	r.epoch, r.pos = e.number, l.head
	if err := l.write(r, payload); err != nil {
		return err
	}
	l.grown()
	s := r.span()
	e.spans.put(s)
	l.indexMu.Lock()
	l.index.put(s)
	l.indexMu.Unlock()
	if used := int64(l.head - l.tail); !l.degraded && used > l.ring/4*3 {
		l.degraded = true
		l.wake()
		l.v.log.Warn("volume waits for its source with every write: its log is full", "volume", l.v.name)
	}
	return nil
}

// grown: the open epoch reaches to the head.
func (l *backlog) grown() {
	e := l.open()
	if e.empty() {
		e.born = time.Now()
		l.wake()
	}
	e.end = l.head
	if int64(e.end-e.start) > l.ring/4 {
		l.wake()
	}
}

// write puts a record at the head.
func (l *backlog) write(r record, payload []byte) error {
	r.id, r.sequence, r.pos, r.durable = l.id, l.sequence, l.head, l.durable
	r.encode(l.scratch[:])
	n := recordSize
	if len(payload) <= inlinePayload {
		n += copy(l.scratch[recordSize:], payload)
		payload = nil
	}
	if _, err := l.file.WriteAt(l.scratch[:n], l.at(l.head)); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	if len(payload) > 0 {
		if _, err := l.file.WriteAt(payload, l.at(l.head)+recordSize); err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	l.head += uint64(r.size())
	l.sequence++
	return nil
}

// closeEpoch ends the open epoch, if there is something in it. When its end cannot be written, there must be no
// record behind it until the log is empty.
func (l *backlog) closeEpoch() {
	e := l.open()
	if e.empty() {
		return
	}
	if err := l.write(record{kind: endRecord, epoch: e.number}, nil); err != nil {
		l.fallSick(err)
	}
	e.end, e.endSequence, e.closed = l.head, l.sequence, true
	l.epochs = append(l.epochs, &epoch{number: e.number + 1, start: l.head, end: l.head})
}

func (l *backlog) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// broadcast lets those look again who wait for a change.
func (l *backlog) broadcast() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// next is closed at the next change.
func (l *backlog) next() chan struct{} {
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// sync makes what is in the log durable. When that fails nothing in the log that was not durable before can be relied
// on: it is to be brought to the source as long as it can be read.
func (l *backlog) sync() error {
	return l.syncs.do(func() error {
		l.mu.Lock()
		to, sick := l.head, l.sick
		done := l.durable >= to
		l.mu.Unlock()
		if sick != nil || done {
			return sick
		}
		err := l.file.Sync()
		l.mu.Lock()
		defer l.mu.Unlock()
		if err != nil {
			l.fallSick(fmt.Errorf("log: sync: %w", err))
			return l.sick
		}
		l.durable = max(l.durable, to)
		return nil
	})
}

func (l *backlog) fallSick(err error) {
	if l.sick == nil {
		l.sick = err
		l.v.log.Warn("volume writes to its source at once: its log fails", "volume", l.v.name, "error", err)
	}
	l.wake()
	l.broadcast()
}

// writeHeader says durably that the log starts at tail.
func (l *backlog) writeHeader(tail, sequence, epoch, durable uint64) error {
	l.generation++
	return l.putHeader(logHeader{id: l.id, generation: l.generation, ring: l.ring, tail: tail, sequence: sequence, epoch: epoch, durable: durable})
}

// putHeader writes a header durably to its place; the other place keeps the one before.
func (l *backlog) putHeader(h logHeader) error {
	var b [headerSize]byte
	h.encode(b[:])
	if _, err := l.file.WriteAt(b[:], int64(h.generation%2)*logSlot); err != nil {
		return fmt.Errorf("log: header: %w", err)
	}
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("log: header: %w", err)
	}
	return nil
}

func crcOf(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }
