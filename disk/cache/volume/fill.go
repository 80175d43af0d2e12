package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"

	"hayloft/cloud/fault"
	"hayloft/internal/ranges"
)

const (
	flightChunks   = 16 // that one flight brings at most
	chunksInFlight = 32 // of all flights of a volume: a bound on memory
)

// flight is one fetch of neighbouring chunks [first, last) from the source, however many wait for it.
type flight struct {
	first, last int64
	done        chan struct{}
	content     []byte // once done without an error
	err         error
}

type flights struct {
	mu      sync.Mutex
	byChunk map[int64]*flight
	memory  *semaphore.Weighted // chunks
}

// board gives the flight that brings chunk, a new one for it and the missing ones behind it up to last if need be.
func (v *volume) board(chunk, last int64) (*flight, error) {
	fs := &v.flights
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.byChunk[chunk]; f != nil {
		return f, nil
	}
	if !v.enter() {
		return nil, v.closed()
	}
	f := &flight{first: chunk, last: chunk + 1, done: make(chan struct{})}
	for f.last < min(last, chunk+flightChunks) && fs.byChunk[f.last] == nil && !v.present.has(f.last) {
		f.last++
	}
	for c := f.first; c < f.last; c++ {
		fs.byChunk[c] = f
	}
	go func() {
		defer v.leave()
		v.fly(f)
	}()
	return f, nil
}

// fly holds the chunks from before the source is read until they are stored: a write that overlaps comes before or
// after all of it. The flight is over for newcomers before others get the chunks.
func (v *volume) fly(f *flight) {
	start, _ := v.chunkRange(f.first)
	_, end := v.chunkRange(f.last - 1)
	var h *ranges.Hold
	err := v.flights.memory.Acquire(v.life, f.last-f.first)
	if err == nil {
		defer v.flights.memory.Release(f.last - f.first)
		h, err = v.ranges.Lock(v.life, start, end)
	}
	if err == nil {
		err = v.patient(v.life, func() error {
			content := make([]byte, end-start) // a new one each time: what failed may still be written to
			err := v.remote.readAt(content, start)
			f.content = content
			return err
		})
		if err == nil {
			v.store(f.first, f.last, f.content)
		}
	}
	if err != nil {
		f.err = fmt.Errorf("volume of %s: %w", v.name, err)
		f.content = nil
		if v.life.Err() != nil {
			f.err = v.closed()
		}
	}
	v.flights.mu.Lock()
	for c := f.first; c < f.last; c++ {
		delete(v.flights.byChunk, c)
	}
	v.flights.mu.Unlock()
	if h != nil {
		h.Unlock()
	}
	close(f.done)
}

// store keeps those of the chunks that are not here, as far as there is room. The caller holds them.
func (v *volume) store(first, last int64, content []byte) {
	base, _ := v.chunkRange(first)
	for c := first; c < last; c++ {
		if v.present.has(c) {
			continue
		}
		if !v.room() {
			return
		}
		start, end := v.chunkRange(c)
		if err := v.put(content[start-base:end-base], start); err != nil {
			v.residents.used.Add(-1)
			v.local(err)
			return
		}
		if err := v.setPresent(c, c+1); err != nil {
			v.residents.used.Add(-1)
			v.local(err)
			return
		}
	}
}

// put writes to the data file, zeros as a hole.
func (v *volume) put(p []byte, offset int64) error {
	if isZero(p) {
		return v.data.Punch(offset, int64(len(p)))
	}
	_, err := v.data.WriteAt(p, offset)
	return err
}

// cached reads what is here. With done false it is not, or went while it was read; an error is the local storage's.
func (v *volume) cached(p []byte, offset int64) (done bool, err error) {
	first, last := chunksIn(offset, int64(len(p)))
	for range 3 {
		changes := v.residents.changes.Load()
		if !v.present.hasAll(first, last) {
			return false, nil
		}
		for c := first; c < last; c++ {
			v.residents.touch(c)
		}
		if n, err := v.data.ReadAt(p, offset); n < len(p) {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return false, err
		}
		if v.residents.changes.Load() == changes {
			return true, nil
		}
	}
	return false, nil
}

// readThrough reads from the cache, and from the source what is not there.
func (v *volume) readThrough(ctx context.Context, p []byte, offset int64) error {
	done, err := v.cached(p, offset)
	if done {
		return nil
	}
	first, last := chunksIn(offset, int64(len(p)))
	if err != nil {
		v.local(err)
		if err := v.forget(ctx, first, last); err != nil {
			return err
		}
	}
	return v.readMissing(ctx, p, offset, first, last)
}

// readMissing fetches what is missing, all of it at once, and fills p. What goes while it is read, as in a cache that
// is smaller than p, is fetched by itself.
func (v *volume) readMissing(ctx context.Context, p []byte, offset, first, last int64) error {
	var found []*flight
	for c := first; c < last; {
		if v.present.has(c) {
			found = append(found, nil)
			c++
			continue
		}
		f, err := v.board(c, last)
		if err != nil {
			return err
		}
		v.misses.Add(min(f.last, last) - c)
		for ; c < min(f.last, last); c++ {
			found = append(found, f)
		}
	}
	for i, f := range found {
		c := first + int64(i)
		start, end := v.chunkRange(c)
		part := p[max(start-offset, 0):min(end-offset, int64(len(p)))]
		at := max(start, offset)
		if f == nil {
			done, err := v.cached(part, at)
			if done {
				continue
			}
			if err != nil {
				v.local(err)
				if err := v.forget(ctx, c, c+1); err != nil {
					return err
				}
			}
			if f, err = v.board(c, c+1); err != nil {
				return err
			}
		}
		if err := f.wait(ctx); err != nil {
			return err
		}
		base, _ := v.chunkRange(f.first)
		copy(part, f.content[at-base:])
	}
	return nil
}

func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fault.As(fault.Unavailable, ctx.Err())
	}
}

// forget drops chunks that cannot be read here.
func (v *volume) forget(ctx context.Context, first, last int64) error {
	start, _ := v.chunkRange(first)
	_, end := v.chunkRange(last - 1)
	h, err := v.ranges.Lock(ctx, start, end)
	if err != nil {
		return fault.As(fault.Unavailable, err)
	}
	defer h.Unlock()
	return v.drop(first, last)
}

// fetch brings chunks [first, last) here, several flights at a time. report may be nil.
func (v *volume) fetch(ctx context.Context, first, last int64, report func(done, total int64)) error {
	const atOnce = 4
	total := (last - first) * chunkSize
	var under []*flight
	land := func() error {
		f := under[0]
		under = under[1:]
		err := f.wait(ctx)
		if err == nil && report != nil {
			report((f.last-first)*chunkSize, total)
		}
		return err
	}
	for c := first; c < last; {
		if v.present.has(c) {
			c++
			continue
		}
		f, err := v.board(c, last)
		if err != nil {
			return err
		}
		under = append(under, f)
		c = f.last
		if len(under) == atOnce {
			if err := land(); err != nil {
				return err
			}
		}
	}
	for len(under) > 0 {
		if err := land(); err != nil {
			return err
		}
	}
	if report != nil {
		report(total, total)
	}
	return nil
}

var errClosed = errors.New("closed")

func (v *volume) closed() error {
	return fault.Errorf(fault.WrongState, "volume of %s: %w", v.name, errClosed)
}
