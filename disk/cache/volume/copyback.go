package volume

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
)

const (
	chunksOfBatch   = 1024 // copied back between two syncs of the source
	writesToSource  = 16   // at a time
	comparesAtOnce  = 4
	settleAttempts  = 3 // while the machine goes on writing
	progressOfBatch = chunksOfBatch * chunkSize
)

// settle copies back what changed. A batch's chunks lose their digests durably before the source is changed, and
// get new ones when it has synced them: done again after a crash, whatever was written meanwhile is written again.
func (o *offline) settle(ctx context.Context, report func(done, total int64)) error {
	if err := o.settles.take(ctx); err != nil {
		return err
	}
	defer o.settles.give()
	if !o.ready.Load() {
		return nil
	}
	if fenced := o.fenced.Load(); fenced != nil {
		return *fenced
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.v.life, cancel)()
	for range settleAttempts {
		if err := o.copyBack(ctx, report); err != nil {
			o.fence(err)
			return err
		}
		if o.dirty.count.Load() == 0 {
			break
		}
	}
	return o.unmark(ctx)
}

// unmark clears the source's mark, unless there is something new again.
func (o *offline) unmark(ctx context.Context) error {
	if err := o.marking.take(ctx); err != nil {
		return err
	}
	defer o.marking.give()
	o.gate.Lock()
	if o.dirty.count.Load() > 0 {
		o.gate.Unlock()
		return nil
	}
	o.marked.Store(false) // from now on a write waits for us and sets it again
	o.gate.Unlock()
	if err := o.v.changeState(func(s *state) { s.Marked = false }); err != nil {
		return err
	}
	err := o.v.patient(ctx, func() error { return o.v.remote.Undrained(ctx, false) })
	if err != nil {
		o.fence(err)
		return fmt.Errorf("mark: %w", err)
	}
	return nil
}

func (o *offline) copyBack(ctx context.Context, report func(done, total int64)) error {
	total := o.dirty.count.Load() * chunkSize
	if total == 0 {
		return nil
	}
	if err := o.mark(ctx); err != nil {
		return err
	}
	o.watch(true)
	defer o.watch(false)
	// What is copied must not be lost here afterwards: its digest would say that the source has something else.
	if err := o.flush(ctx); err != nil {
		return err
	}
	done := int64(0)
	for c := o.dirty.next(0); c < o.dirty.size; {
		var batch []int64
		for ; c < o.dirty.size && len(batch) < chunksOfBatch; c = o.dirty.next(c + 1) {
			batch = append(batch, c)
		}
		if err := o.batchBack(ctx, batch); err != nil {
			return err
		}
		done = min(done+progressOfBatch, total)
		report(done, total)
	}
	return nil
}

// watch begins or ends noting what changes.
func (o *offline) watch(yes bool) {
	o.gate.Lock()
	defer o.gate.Unlock()
	o.settling = yes
	for w := range o.changed {
		o.changed[w].Store(0)
	}
}

type copied struct {
	chunk  int64
	differ bool
	digest [digestSize]byte // of what was written
}

func (o *offline) batchBack(ctx context.Context, chunks []int64) error {
	batch := make([]copied, len(chunks))
	if err := o.compare(ctx, chunks, batch); err != nil {
		return err
	}
	differ := 0
	for i := range batch {
		if batch[i].differ {
			differ++
			if _, err := o.origin.WriteAt(unknown[:], batch[i].chunk*digestSize); err != nil {
				return fmt.Errorf("origin: %w", err)
			}
		}
	}
	if differ > 0 {
		if err := o.origin.Sync(); err != nil {
			return fmt.Errorf("origin: %w", err)
		}
		if err := o.writeBack(ctx, batch); err != nil {
			return err
		}
	}
	return o.forgetDirty(batch)
}

// compare finds which chunks differ from what the source has.
func (o *offline) compare(ctx context.Context, chunks []int64, batch []copied) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range comparesAtOnce {
		g.Go(func() error {
			content := make([]byte, chunkSize)
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= int64(len(chunks)) {
					return nil
				}
				c := chunks[i]
				start, end := o.v.chunkRange(c)
				if err := o.read(content[:end-start], start); err != nil {
					return err
				}
				digest, err := o.origins(c, c+1)
				if err != nil {
					return err
				}
				batch[i] = copied{chunk: c, differ: !digestIs(digest, content[:end-start])}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// writeBack writes the chunks that differ, and syncs the source. After an error all of them are written again.
func (o *offline) writeBack(ctx context.Context, batch []copied) error {
	v := o.v
	return v.patient(ctx, func() error {
		var next atomic.Int64
		g, ctx := errgroup.WithContext(ctx)
		for range writesToSource {
			g.Go(func() error {
				for ctx.Err() == nil {
					i := next.Add(1) - 1
					if i >= int64(len(batch)) {
						return nil
					}
					if !batch[i].differ {
						continue
					}
					start, end := v.chunkRange(batch[i].chunk)
					content := make([]byte, end-start) // the source may read it after an error
					if err := o.read(content, start); err != nil {
						return err
					}
					batch[i].digest = blake3.Sum256(content)
					var err error
					if isZero(content) {
						err = v.remote.zero(start, end-start, false)
					} else {
						err = v.remote.writeAt(content, start)
					}
					if err != nil {
						return err
					}
				}
				return ctx.Err()
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		return v.remote.sync()
	})
}

// forgetDirty clears the bits of those that nobody changed since watch began.
func (o *offline) forgetDirty(batch []copied) error {
	o.gate.Lock()
	defer o.gate.Unlock()
	for i := 0; i < len(batch); {
		from := batch[i].chunk
		to := from
		for ; i < len(batch) && batch[i].chunk == to; i++ {
			if o.changed[to/64].Load()&(1<<(to%64)) != 0 {
				i++
				break
			}
			if batch[i].differ {
				if _, err := o.origin.WriteAt(batch[i].digest[:], to*digestSize); err != nil {
					return fmt.Errorf("origin: %w", err)
				}
			}
			to++
		}
		if _, err := o.dirty.clear(from, to); err != nil {
			return fault.As(fault.ClassOf(err), fmt.Errorf("dirty: %w", err))
		}
	}
	return nil
}
