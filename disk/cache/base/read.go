package base

import (
	"context"
	"fmt"
	"io"
	"time"

	"hayloft/cloud/fault"
)

// maxStep is how many bytes of one read are brought here at once.
const maxStep = 4 << 20

var errClosed = fault.Errorf(fault.WrongState, "its cache is closed")

// span is the first and the last chunk of a range that is not empty.
func (b *base) span(offset int64, length int) (first, last int) {
	return int(offset >> b.shift), int((offset + int64(length) - 1) >> b.shift)
}

// read fills p from the data file, after what is missing of it was brought there. missed says whether there was any.
func (b *base) read(ctx context.Context, p []byte, offset int64) (missed int, err error) {
	for len(p) > 0 {
		n := min(len(p), maxStep)
		m, err := b.step(ctx, p[:n], offset)
		missed += m
		if err != nil {
			return missed, fmt.Errorf("image %s: %w", b.name, err)
		}
		p, offset = p[n:], offset+int64(n)
	}
	return missed, nil
}

func (b *base) step(ctx context.Context, p []byte, offset int64) (missed int, err error) {
	first, last := b.span(offset, len(p))
	seats, missed, err := b.board(first, last)
	if err != nil {
		return missed, err
	}
	defer b.leave(seats)
	for i := first; i <= last; {
		seat := find(seats, i)
		if seat == nil { // a run that is here
			to := i
			for to < last && find(seats, to+1) == nil {
				to++
			}
			part, at := b.overlap(p, offset, i, to)
			if ok, _ := b.readHere(part, at, i, to); !ok {
				for k := i; k <= to; k++ {
					part, at := b.overlap(p, offset, k, k)
					if err := b.readOne(ctx, part, at, k, true); err != nil {
						return missed, err
					}
				}
			}
			i = to + 1
			continue
		}
		if err := b.wait(ctx, seat.flight); err != nil {
			return missed, err
		}
		part, at := b.overlap(p, offset, i, i)
		if seat.out {
			err = b.readOne(ctx, part, at, i, true)
		} else if err = b.take(part, at, seat.flight, i); err != nil && !seat.own {
			err = b.readOne(ctx, part, at, i, false)
		}
		if err != nil {
			return missed, err
		}
		i++
	}
	return missed, nil
}

// overlap is the part of p, which begins at offset of the image, that chunks from first to last cover.
func (b *base) overlap(p []byte, offset int64, first, last int) (part []byte, at int64) {
	from := max(offset, int64(first)<<b.shift)
	to := min(offset+int64(len(p)), int64(last+1)<<b.shift)
	return p[from-offset : to-offset], from
}

// seat is a place on a flight. Who took one on a flight that somebody else had started, perhaps long ago, tries again
// when that fails.
type seat struct {
	*flight
	own bool
}

func find(seats []seat, i int) *seat {
	for k := range seats {
		if seats[k].of(i) {
			return &seats[k]
		}
	}
	return nil
}

// take copies from a flight that is done.
func (b *base) take(p []byte, offset int64, f *flight, i int) error {
	if err := f.failure(i); err != nil {
		return err
	}
	start, _ := b.index.Range(f.first)
	copy(p, f.buf[offset-start:])
	return nil
}

// board joins or starts the flights of all chunks from first to last that are not here, and counts these chunks.
// The caller leaves them.
func (b *base) board(first, last int) (seats []seat, missed int, err error) {
	if b.whole.Load() || b.here.all(first, last) {
		return nil, 0, nil
	}
	b.kin()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, 0, errClosed
	}
	for i := first; i <= last; {
		f := b.flights[i]
		own := f == nil
		switch {
		case b.here.has(i):
			i++
			continue
		case own:
			f, _ = b.claim(i, last, demand)
			b.launch(f)
		}
		f.waiters++
		seats = append(seats, seat{f, own})
		next := min(last+1, f.first+f.count)
		missed += next - i
		i = next
	}
	return seats, missed, nil
}

func (b *base) leave(seats []seat) {
	if len(seats) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range seats {
		s.waiters--
		b.recycle(s.flight)
	}
}

// readHere reads from the data file what chunks from first to last have, unless one of them is not here. broken says
// that the file cannot be read.
func (b *base) readHere(p []byte, offset int64, first, last int) (ok, broken bool) {
	if b.capacity > 0 {
		b.punching.RLock()
		defer b.punching.RUnlock()
	}
	before := b.now()
	if !b.present(first, last) {
		return false, false
	}
	n, err := b.data.ReadAt(p, offset)
	switch {
	case failed(n, len(p), err):
		b.degrade("read", err)
		return false, true
	case b.held(before, first, last):
		return true, false
	}
	return b.readDoubtful(p, offset, first, last)
}

// failed reports whether n bytes of so many and an error are not what a ReaderAt gives that has read them.
func failed(n, want int, err error) bool { return n < want || err != nil && err != io.EOF }

// readDoubtful reads what a sync under way may undo, whole chunks, and verifies it.
func (b *base) readDoubtful(p []byte, offset int64, first, last int) (ok, broken bool) {
	for i := first; i <= last; i++ {
		at, length := b.index.Range(i)
		whole := make([]byte, length)
		if n, _ := b.data.ReadAt(whole, at); n < length || b.index.VerifyChunk(i, whole) != nil {
			return false, true
		}
		part, from := b.overlap(p, offset, i, i)
		copy(part, whole[from-at:])
	}
	return true, false
}

// moment is what a read compares to find out whether chunks that were here when it began were here throughout.
type moment struct {
	whole bool
	syncs uint64
}

func (b *base) now() moment { return moment{b.whole.Load(), b.syncs.Load()} }

// held reports whether no sync that may have failed touched the chunks since. Two syncs could have brought a chunk
// back.
func (b *base) held(since moment, first, last int) bool {
	syncs := b.syncs.Load()
	return since.whole || syncs == since.syncs && syncs&1 == 0 ||
		syncs-since.syncs <= 2 && !b.fresh.any(first, last) && b.here.all(first, last)
}

// present reports whether all chunks from first to last are here, and has them count as used.
func (b *base) present(first, last int) bool {
	if b.whole.Load() {
		return true
	}
	if !b.here.all(first, last) {
		return false
	}
	if b.used != nil {
		for i := first; i <= last; i++ {
			b.used.set(i)
		}
	}
	return true
}

// readOne reads a part of chunk i, however often that is evicted meanwhile, and past a file that cannot be read. With
// again, a flight of somebody else that fails is followed by another.
func (b *base) readOne(ctx context.Context, p []byte, offset int64, i int, again bool) error {
	if b.index.IsZero(i) {
		clear(p)
		return nil
	}
	for {
		ok, broken := b.readHere(p, offset, i, i)
		if ok {
			return nil
		}
		s, err := b.boardOne(i, broken)
		if err != nil {
			return err
		}
		if s.flight == nil {
			continue
		}
		waited := b.wait(ctx, s.flight)
		if waited == nil && !s.out {
			err = b.take(p, offset, s.flight, i)
		}
		b.leave([]seat{s})
		switch {
		case waited != nil:
			return waited
		case s.out:
		case err != nil && again && !s.own:
			again = false
		default:
			return err
		}
	}
}

// boardOne joins or starts the flight of a chunk. When the chunk is here there is none, or when it is here and broken,
// one that does not store it.
func (b *base) boardOne(i int, broken bool) (seat, error) {
	b.kin()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return seat{}, errClosed
	}
	f := b.flights[i]
	own := f == nil
	if own {
		if f, _ = b.claim(i, i, demand); f == nil && !broken {
			return seat{}, nil
		} else if f == nil {
			f = &flight{first: i, count: 1, class: demand, twin: -1, unstored: true, since: time.Now(), done: make(chan struct{})}
			b.flights[i] = f
		}
		b.launch(f)
	}
	f.waiters++
	return seat{f, own}, nil
}

// readChunk reads all of a chunk.
func (b *base) readChunk(ctx context.Context, p []byte, i int) error {
	offset, _ := b.index.Range(i)
	return b.readOne(ctx, p, offset, i, true)
}
