package base

import "sync"

const (
	firstAhead = 256 << 10 // bytes
	lastAhead  = 4 << 20
	streamsOf  = 4 // sequential reads that a reader is known to do at the same time
	// How far from where a stream is a read of it may begin: requests under way together overtake each other.
	slackBack    = 2 << 20
	slackForward = 256 << 10
)

// streams finds out which of a reader's reads are sequential.
type streams struct {
	mu    sync.Mutex
	clock int64
	of    [streamsOf]stream
}

// stream is one sequential read. It reads ahead once it misses, and goes on doing so while it reads what that brought.
type stream struct {
	high   int64 // end of what was read
	ahead  int64 // end of what was read ahead
	length int64 // read so far
	window int64
	used   int64
}

// next says what to read ahead, nothing when from equals to.
// most is the largest window.
func (s *streams) next(offset, length, size, chunk, most int64, missed bool) (from, to int64) {
	s.clock++
	var at *stream
	oldest := &s.of[0]
	for i := range s.of {
		c := &s.of[i]
		if c.length > 0 && offset >= c.high-slackBack && offset <= c.high+slackForward && (at == nil || c.high > at.high) {
			at = c
		}
		if c.used < oldest.used {
			oldest = c
		}
	}
	end := offset + length
	if at == nil {
		*oldest = stream{high: end, ahead: end, length: length, used: s.clock}
		return 0, 0
	}
	at.used = s.clock
	if end <= at.high {
		return 0, 0
	}
	at.length += end - at.high
	at.high = end
	switch {
	case at.window == 0 && (!missed || at.length <= chunk), !missed && end > at.ahead:
		return 0, 0 // what is here was not brought by reading ahead
	case at.window == 0:
		at.window = min(firstAhead, most)
	case end > at.ahead-at.window/2:
		at.window = min(2*at.window, most, max(at.window, at.length))
	default:
		return 0, 0
	}
	from, to = max(at.ahead, end), min(size, end+at.window)
	if from >= to {
		return 0, 0
	}
	at.ahead = to
	return from, to
}

// readAhead starts the read-ahead that a read makes sensible. It does not wait.
func (r *reader) readAhead(offset int64, length int, missed bool) {
	if r.base.whole.Load() || !r.streams.mu.TryLock() {
		return
	}
	most := int64(lastAhead)
	if r.base.capacity > 0 { // what is read ahead must not drive out what is used
		most = min(most, r.base.capacity/8)
	}
	from, to := r.streams.next(offset, int64(length), r.base.size, 1<<r.base.shift, most, missed)
	r.streams.mu.Unlock()
	if from < to {
		// The chunk that this read ends in comes with the read.
		r.base.readAhead(int((from-1)>>r.base.shift)+1, int((to-1)>>r.base.shift))
	}
}

// readAhead brings chunks from first to last in a goroutine of its own, unless enough of these are at work.
func (b *base) readAhead(first, last int) {
	if first > last || b.here.all(first, last) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.aheads >= maxAhead {
		return
	}
	b.aheads++
	b.work.Add(1)
	go func() {
		defer b.work.Done()
		b.kin()
		for next := first; next <= last && b.gate.enter(b.ctx, ahead) == nil; {
			b.mu.Lock()
			var f *flight
			f, next = b.claim(next, last, ahead)
			b.mu.Unlock()
			if f != nil {
				b.fly(f)
			}
			b.gate.leave(ahead)
		}
		b.mu.Lock()
		b.aheads--
		b.mu.Unlock()
	}()
}
