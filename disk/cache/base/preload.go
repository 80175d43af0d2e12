package base

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
)

// Preload implements cache.Base. What cannot be stored is an error of it, other than of a read.
func (b *base) Preload(ctx context.Context, chunks []int, limit cache.Limit, report func(done, total int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.ctx, func() { cancel(errClosed) })()
	q := &queue{base: b, chunks: chunks, report: report}
	for _, i := range chunks {
		if i < 0 || i >= b.chunks {
			return fault.Errorf(fault.Invalid, "image %s: preload of chunk %d: it has %d", b.name, i, b.chunks)
		}
		q.total += b.length(i, 1)
	}
	group, ctx := errgroup.WithContext(ctx)
	for range maxPreload {
		group.Go(func() error {
			for {
				i, n := q.take()
				if n == 0 {
					return nil
				}
				if err := b.preload(ctx, i, n, limit); err != nil {
					return err
				}
				q.did(b.length(i, n))
			}
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("image %s: preload: %w", b.name, err)
	}
	return nil
}

// length is the number of bytes in n chunks from i that are not zero.
func (b *base) length(i, n int) (bytes int64) {
	for k := i; k < i+n; k++ {
		if !b.index.IsZero(k) {
			_, length := b.index.Range(k)
			bytes += int64(length)
		}
	}
	return bytes
}

// queue hands out the chunks of a preload in their order, neighbours together.
type queue struct {
	base   *base
	report func(done, total int64)

	mu          sync.Mutex
	chunks      []int
	done, total int64
}

// take gives n chunks from i to be brought; those that are here before them are done.
func (q *queue) take() (i, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.chunks) > 0 && q.base.here.has(q.chunks[0]) {
		q.done += q.base.length(q.chunks[0], 1)
		q.chunks = q.chunks[1:]
	}
	q.tell()
	if len(q.chunks) == 0 {
		return 0, 0
	}
	i = q.chunks[0]
	for n = 1; n < min(len(q.chunks), q.base.maxRun) && q.chunks[n] == i+n && !q.base.here.has(i+n); n++ {
	}
	q.chunks = q.chunks[n:]
	return i, n
}

func (q *queue) did(bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done += bytes
	q.tell()
}

func (q *queue) tell() {
	if q.report != nil {
		q.report(q.done, q.total)
	}
}

// preload brings n chunks from i, or waits for those who do.
func (b *base) preload(ctx context.Context, i, n int, limit cache.Limit) error {
	if limit != nil {
		if bytes := b.toFetch(i, n); bytes > 0 {
			if err := limit.Wait(ctx, bytes); err != nil {
				return err
			}
		}
	}
	if err := b.gate.enter(ctx, preload); err != nil {
		return err
	}
	b.kin()
	var own []*flight
	var seats []seat
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		b.gate.leave(preload)
		return errClosed
	}
	for next := i; next < i+n; {
		f := b.flights[next]
		started := f == nil
		switch {
		case !started:
			next = f.first + f.count
		case b.here.has(next):
			next++
			continue
		default:
			f, next = b.claim(next, i+n-1, preload)
			own = append(own, f)
		}
		f.waiters++
		seats = append(seats, seat{f, started})
	}
	b.work.Add(1) // what is claimed is flown, whatever becomes of ctx
	b.mu.Unlock()
	flown := make(chan struct{})
	go func() {
		defer b.work.Done()
		defer close(flown)
		defer b.gate.leave(preload)
		for _, f := range own {
			b.fly(f)
		}
	}()
	defer b.leave(seats)
	select {
	case <-flown:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, s := range seats {
		if err := b.arrival(ctx, s, i, i+n-1); err != nil {
			return err
		}
		if s.stored != nil && b.capacity == 0 {
			return s.stored
		}
	}
	return nil
}

// arrival waits for those chunks from first to last that are on a flight.
func (b *base) arrival(ctx context.Context, s seat, first, last int) error {
	if err := b.wait(ctx, s.flight); err != nil {
		return err
	}
	for i := max(first, s.first); i <= min(last, s.first+s.count-1); i++ {
		if s.out { // evicted just now: it is not worth having
			return nil
		}
		err := s.failure(i)
		if err != nil && !s.own {
			offset, length := b.index.Range(i)
			err = b.readOne(ctx, make([]byte, length), offset, i, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// toFetch is how many bytes of n chunks from i have to come from the repository, as far as is known.
func (b *base) toFetch(i, n int) (bytes int) {
	for k := i; k < i+n; k++ {
		if !b.here.has(k) && !b.donorHas(k) {
			bytes += int(b.length(k, 1))
		}
	}
	return bytes
}

func (b *base) donorHas(i int) bool {
	for _, r := range b.kin().donors {
		if j, ok := r.pairs.find(i); ok && r.has(j) {
			return true
		}
	}
	return false
}

// bring has chunks from first to last come here.
func (b *base) bring(ctx context.Context, first, last int) error {
	step := max(1, maxStep>>b.shift)
	for ; first <= last; first += step {
		seats, _, err := b.board(first, min(last, first+step-1))
		for _, s := range seats {
			if err == nil {
				err = b.arrival(ctx, s, first, last)
			}
		}
		b.leave(seats)
		if err != nil {
			return fmt.Errorf("image %s: prefetch: %w", b.name, err)
		}
	}
	return nil
}
