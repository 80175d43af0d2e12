package base

import (
	"context"
	"fmt"
	"time"

	"hayloft/cloud/fault"
)

// maxRun is how many bytes of neighbouring chunks are fetched at once.
const maxRun = 1 << 20

// Repeating what could not be done because the repository is unavailable.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 5 * time.Second
)

// flight is a run of chunks on their way here, all at once; or chunks on their way out. Who wants one of them waits
// for done and takes the bytes from buf, which also serves those that could not be stored.
type flight struct {
	first, count int
	class        class
	twin         int  // of a single chunk: the chunk that is the same, else -1
	unstored     bool // only to be handed on: the data file cannot be read there
	out          bool // eviction: look again when done

	done   chan struct{}
	buf    []byte
	bad    map[int]error // of single chunks
	err    error         // of all that are not in bad
	stored error         // why it is not in the data file

	since   time.Time
	waiters int  // protected by base.mu
	landed  bool // likewise
}

// of reports whether chunk i is on this flight.
func (f *flight) of(i int) bool { return i >= f.first && i < f.first+f.count }

// failure is why chunk i did not come.
func (f *flight) failure(i int) error {
	if err := f.bad[i]; err != nil {
		return err
	}
	return f.err
}

// claim makes a flight of the first run of chunks from first to last that are neither here nor under way, nil when
// there is none; next is where to go on. b.mu is held.
func (b *base) claim(first, last int, c class) (f *flight, next int) {
	i := first
	for i <= last && (b.here.has(i) || b.flights[i] != nil) {
		i++
	}
	if i > last {
		return nil, i
	}
	f = &flight{first: i, class: c, twin: -1, since: time.Now(), done: make(chan struct{})}
	twins := b.kin().twins
	for ; i <= last && f.count < b.maxRun && !b.here.has(i) && b.flights[i] == nil; i++ {
		if other, ok := twins.find(i); ok {
			if f.count > 0 {
				break
			}
			f.twin = other
		}
		b.flights[i] = f
		f.count++
		if f.twin >= 0 {
			return f, i + 1
		}
	}
	return f, i
}

// launch has a claimed flight of class demand flown. b.mu is held.
func (b *base) launch(f *flight) {
	b.work.Add(1)
	go func() {
		defer b.work.Done()
		if f.twin < 0 { // the twin's flight goes through the gate
			if err := b.gate.enter(b.ctx, f.class); err != nil {
				f.err = err
				b.land(f)
				return
			}
			defer b.gate.leave(f.class)
		}
		b.fly(f)
	}()
}

// fly brings the chunks of a flight, stores them and tells who waits.
func (b *base) fly(f *flight) {
	b.fill(f)
	b.land(f)
}

func (b *base) land(f *flight) {
	b.mu.Lock()
	for i := f.first; i < f.first+f.count; i++ {
		if b.flights[i] == f {
			delete(b.flights, i)
		}
	}
	f.landed = true
	b.recycle(f)
	b.mu.Unlock()
	close(f.done)
}

func (b *base) fill(f *flight) {
	start, _ := b.index.Range(f.first)
	end, length := b.index.Range(f.first + f.count - 1)
	f.buf = b.buffer(int(end + int64(length) - start))
	if f.twin >= 0 {
		if f.err = b.readChunk(b.ctx, f.buf, f.twin); f.err == nil {
			b.keep(f, f.first, 1)
		}
		return
	}
	if f.unstored {
		b.fetch(f, f.first, f.count)
		return
	}
	for i := f.first; i < f.first+f.count; {
		n := 0 // chunks before one that is inherited
		for ; i+n < f.first+f.count; n++ {
			if ok, kept := b.inherit(i+n, b.part(f, i+n, 1)); ok {
				if !kept {
					b.keep(f, i+n, 1)
				}
				break
			}
		}
		if n > 0 {
			b.fetch(f, i, n)
		}
		i += n + 1
	}
}

// buffer gives n bytes of any content.
func (b *base) buffer(n int) []byte {
	if n <= maxRun/4 || n > maxRun {
		return make([]byte, n)
	}
	if p, ok := b.buffers.Get().(*[maxRun]byte); ok {
		return p[:n]
	}
	return new([maxRun]byte)[:n]
}

// recycle keeps the buffer of a flight that has landed and that nobody waits for any more. b.mu is held.
func (b *base) recycle(f *flight) {
	if f.landed && f.waiters == 0 && cap(f.buf) == maxRun {
		b.buffers.Put((*[maxRun]byte)(f.buf[:maxRun]))
		f.buf = nil
	}
}

// part is the place in the flight's buffer of n chunks from i.
func (b *base) part(f *flight, i, n int) []byte {
	start, _ := b.index.Range(f.first)
	from, _ := b.index.Range(i)
	to, length := b.index.Range(i + n - 1)
	return f.buf[from-start : to+int64(length)-start]
}

// fetch brings n chunks from i out of the repository, keeps those that are right and says which are not.
func (b *base) fetch(f *flight, i, n int) {
	if err := b.fetchPatiently(f, i, n); err != nil && !fault.Is(err, fault.Corrupt) {
		for k := i; k < i+n; k++ {
			b.reject(f, k, err)
		}
		return
	} // one that is too short: chunk by chunk, which says where it ends
	good := i // start of a run not yet kept
	for k := i; k < i+n; k++ {
		if b.verified(f, k) {
			continue
		}
		b.keep(f, good, k-good)
		good = k + 1
	}
	b.keep(f, good, i+n-good)
}

// verified checks a chunk in the flight's buffer; when it is wrong it is fetched once more.
func (b *base) verified(f *flight, i int) bool {
	if b.index.VerifyChunk(i, b.part(f, i, 1)) == nil {
		return true
	}
	if err := b.fetchPatiently(f, i, 1); err != nil {
		b.reject(f, i, err)
		return false
	}
	err := b.index.VerifyChunk(i, b.part(f, i, 1))
	if err != nil {
		f.reject(i, err)
	}
	return err == nil
}

func (b *base) reject(f *flight, i int, err error) {
	offset, _ := b.index.Range(i)
	f.reject(i, fmt.Errorf("chunk %d at byte %d: %w", i, offset, err))
}

func (f *flight) reject(i int, err error) {
	if f.bad == nil {
		f.bad = map[int]error{}
	}
	f.bad[i] = err
}

// keep stores verified chunks of the flight's buffer, where they are to be stored.
func (b *base) keep(f *flight, i, n int) {
	if n == 0 || f.unstored {
		return
	}
	if err := b.store(i, n, b.part(f, i, n)); err != nil {
		f.stored = err
	}
}

// fetchPatiently reads n chunks from i into the flight's buffer; while the repository is unavailable and somebody
// waits, again and again.
func (b *base) fetchPatiently(f *flight, i, n int) error {
	offset, _ := b.index.Range(i)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		p := b.part(f, i, n)
		read, broken, err := b.source.read(p, offset)
		b.fetched.Add(int64(read))
		if err == nil {
			if b.away.Load() != nil && b.away.Swap(nil) != nil {
				b.log.Info("repository answers again", "image", b.name)
			}
			return nil
		}
		if broken { // it may still be written to
			b.replace(f, p)
		}
		if b.ctx.Err() != nil || !fault.Is(err, fault.Unavailable) {
			return err
		}
		why := err.Error()
		if b.away.Swap(&why) == nil {
			b.log.Warn("repository is unavailable", "image", b.name, "error", err)
		}
		left := time.Until(f.since.Add(b.patience))
		if left <= 0 || !b.wanted(f) {
			return err
		}
		wait := time.NewTimer(min(pause, left))
		select {
		case <-wait.C:
		case <-b.ctx.Done():
			wait.Stop()
			return err
		}
	}
}

// replace gives the flight another buffer, with what the old one has besides p.
func (b *base) replace(f *flight, p []byte) {
	fresh := b.buffer(len(f.buf))
	before := cap(f.buf) - cap(p) // p is a part of buf
	copy(fresh, f.buf[:before])
	copy(fresh[before+len(p):], f.buf[before+len(p):])
	f.buf = fresh
}

func (b *base) wanted(f *flight) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return f.waiters > 0
}

// wait waits for a flight that the caller is counted as a waiter of.
func (b *base) wait(ctx context.Context, f *flight) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
