package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"hayloft/disk/blockd"
	"hayloft/disk/cache"
)

// worker writes and reads those stripes of a disk whose number leaves its own when divided by the number of workers:
// what it reads is known to the byte, while its neighbours write to the same chunks and sectors.
type worker struct {
	volume *volume
	mode   cache.Mode
	random *rand.Rand
	face   face
	number int
	of     int
	stripe int // bytes
}

func (w *worker) run(ctx context.Context, e blockd.Export, own bool, end time.Time) error {
	if own {
		c, err := open(ctx, e)
		if err != nil {
			return err
		}
		defer c.Close()
		w.face = c
	}
	for n := 0; time.Now().Before(end) && !w.volume.soak.ended() && ctx.Err() == nil; n++ {
		if err := w.one(ctx, n); err != nil {
			return fmt.Errorf("operation %d: %w", n, err)
		}
		w.volume.soak.counts.operations.Add(1)
	}
	return nil
}

// place is a random range within one stripe, often of whole sectors or blocks; false when it came out empty.
func (w *worker) place() (at, length int, ok bool) {
	r, size := w.random, len(w.volume.model)
	stripes := (size + w.stripe - 1) / w.stripe
	mine := (stripes - w.number + w.of - 1) / w.of
	if mine <= 0 {
		return 0, 0, false
	}
	start := (r.IntN(mine)*w.of + w.number) * w.stripe
	end := min(start+w.stripe, size)
	at = start + r.IntN(end-start)
	length = 1 + r.IntN(end-at)
	if r.IntN(3) > 0 {
		length = min(length, 1+r.IntN(16<<10))
	}
	if unit := []int{1, 512, 4096, 4096, chunk}[r.IntN(5)]; unit > 1 {
		from, to := (at+unit-1)/unit*unit, (at+length)/unit*unit
		if r.IntN(2) == 0 && from+unit <= end {
			to = from + unit
		}
		at, length = from, to-from
	}
	return at, length, length > 0 && at+length <= end
}

// one is one operation; the model changes when it was acknowledged.
func (w *worker) one(ctx context.Context, n int) error {
	at, length, ok := w.place()
	if !ok {
		return nil
	}
	r, c := w.random, w.face
	part := w.volume.model[at : at+length]
	var err error
	name := ""
	switch k := r.IntN(100); {
	case k < 40:
		p := make([]byte, length)
		if err := c.Read(ctx, p, int64(at)); err != nil {
			return fmt.Errorf("read of %d bytes at %d: %w", length, at, err)
		}
		if err := differ(p, part, int64(at)); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		w.volume.soak.counts.read.Add(int64(length))
		return nil
	case k < 82:
		p := make([]byte, length)
		fillChunk(p, r.Uint64())
		name = "write"
		if r.IntN(10) == 0 {
			name = "durable write"
			err = w.durably(ctx, func() error { return c.Write(ctx, p, int64(at), true) })
		} else {
			err = c.Write(ctx, p, int64(at), false)
		}
		if err == nil {
			copy(part, p)
		}
		w.volume.soak.counts.written.Add(int64(length))
	case k < 88:
		if name, err = "trim", c.Trim(ctx, int64(at), int64(length)); err == nil {
			clear(part)
		}
	case k < 95:
		if name, err = "zeroes", c.WriteZeroes(ctx, int64(at), int64(length), r.IntN(2) == 0); err == nil {
			clear(part)
		}
	default:
		name, err = "flush", w.durably(ctx, func() error { return c.Flush(ctx) })
	}
	if err != nil {
		return fmt.Errorf("%s of %d bytes at %d: %w", name, length, at, err)
	}
	return nil
}

func (w *worker) durably(ctx context.Context, f func() error) error {
	return w.volume.durably(ctx, w.mode, f)
}

// lateError is for how long an error of syncing may be kept back for the next who flushes.
const lateError = time.Minute

// durably does what needs the source to sync. In AROUND and THRU that fails, and the cache does not try it again, when
// the repository is away; a machine tries again.
func (v *volume) durably(ctx context.Context, mode cache.Mode, f func() error) error {
	began := time.Now()
	for {
		err := f()
		if err == nil || mode == cache.Back || mode == cache.Offline || ctx.Err() != nil || time.Since(began) > patience/2 ||
			v.soak.lastAway.Load() < began.Add(-lateError).UnixNano() {
			return err
		}
		v.soak.counts.refused.Add(1)
		time.Sleep(50 * time.Millisecond)
	}
}
