package volume

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"hayloft/disk/repository"
)

const (
	digestSize     = 32
	copiesAtOnce   = 4
	chunksOfWindow = 256 << 20 / chunkSize // between two points from which an interrupted copy goes on
)

// load copies in what is not here. A window is durable with its digests before the state says so.
func (o *offline) load(ctx context.Context, report func(done, total int64)) error {
	if err := o.loading.take(ctx); err != nil {
		return err
	}
	defer o.loading.give()
	v := o.v
	if o.ready.Load() {
		report(v.size, v.size)
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(v.life, cancel)()
	if v.state.Loaded == 0 {
		// What a machine wrote before in another mode is to be there for good.
		if err := v.patient(ctx, v.remote.sync); err != nil {
			return err
		}
	}
	in := copyIn{o: o, report: report, done: v.state.Loaded * chunkSize}
	for first := v.state.Loaded; first < o.dirty.size; {
		last := min(first+chunksOfWindow, o.dirty.size)
		if err := in.window(ctx, first, last); err != nil {
			return err
		}
		if err := o.durable(); err != nil {
			o.unsure = true
			return err
		}
		if err := v.changeState(func(s *state) { s.Loaded = last }); err != nil {
			return err
		}
		first = last
	}
	// From now on this host may have what the source has not.
	if err := v.patient(ctx, func() error { return v.remote.Undrained(ctx, true) }); err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	err := v.changeState(func(s *state) { s.Loaded, s.Complete, s.Marked = 0, true, true })
	if err != nil {
		return err
	}
	o.marked.Store(true)
	o.ready.Store(true)
	report(v.size, v.size)
	return nil
}

// changeState replaces the state durably.
func (v *volume) changeState(f func(*state)) error {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	next := v.state
	f(&next)
	if err := next.write(v.dir); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	v.state = next
	return nil
}

func (o *offline) durable() error {
	if err := o.v.data.Sync(); err != nil {
		return fmt.Errorf("data: %w", err)
	}
	if err := o.origin.Sync(); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	return nil
}

type copyIn struct {
	o      *offline
	start  int64 // of the source's next data, as far as is known
	end    int64
	mu     sync.Mutex
	done   int64
	report func(done, total int64)
}

func (in *copyIn) window(ctx context.Context, first, last int64) error {
	v := in.o.v
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(copiesAtOnce)
	for run := first; run < last && each.Err() == nil; {
		end := min(run+flightChunks, last)
		hole := false
		if !v.present.hasAll(run, end) {
			var err error
			if hole, end, err = in.hole(each, run, end); err != nil {
				g.Go(func() error { return err })
				break
			}
		}
		from := run
		g.Go(func() error { return in.run(each, from, end, hole) })
		run = end
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// hole reports whether the source has no data in the chunk first, and up to which chunk, at most last, that is so.
func (in *copyIn) hole(ctx context.Context, first, last int64) (hole bool, until int64, err error) {
	v := in.o.v
	if _, knows := v.remote.Source.(repository.Extents); !knows {
		return false, last, nil
	}
	if offset := first * chunkSize; offset >= in.end {
		err := v.patient(ctx, func() (err error) {
			in.start, in.end, err = v.remote.nextData(offset)
			return err
		})
		if err == io.EOF {
			in.start, in.end = v.size, v.size
		} else if err != nil {
			return false, 0, err
		}
	}
	if data := in.start / chunkSize; first < data {
		return true, min(last, data), nil
	}
	return false, max(first+1, min(last, chunksOf(in.end))), nil
}

// run brings chunks [first, last) here with their digests.
func (in *copyIn) run(ctx context.Context, first, last int64, hole bool) error {
	v := in.o.v
	start, _ := v.chunkRange(first)
	_, end := v.chunkRange(last - 1)
	content := make([]byte, end-start)
	here := v.present.hasAll(first, last)
	switch {
	case here:
		if n, err := v.data.ReadAt(content, start); n < len(content) {
			return fmt.Errorf("data: %w", err)
		}
	case !hole:
		err := v.patient(ctx, func() error {
			fresh := make([]byte, end-start)
			content = fresh
			return v.remote.readAt(fresh, start)
		})
		if err != nil {
			return err
		}
	}
	digests := make([]byte, 0, (last-first)*digestSize)
	for c := first; c < last; c++ {
		from, to := v.chunkRange(c)
		part := content[from-start : to-start]
		if !here || in.o.unsure {
			if err := v.put(part, from); err != nil {
				return fmt.Errorf("data: %w", err)
			}
		}
		sum := blake3.Sum256(part)
		digests = append(digests, sum[:]...)
	}
	if _, err := in.o.origin.WriteAt(digests, first*digestSize); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	if !here {
		if err := v.setPresent(first, last); err != nil {
			return err
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.done += end - start
	in.report(in.done, v.size)
	return nil
}

// unknown is the digest of what nothing is known about.
var unknown [digestSize]byte

// origins reads digests of chunks [first, last); unknown where there are none.
func (o *offline) origins(first, last int64) ([]byte, error) {
	b := make([]byte, (last-first)*digestSize)
	n, err := o.origin.ReadAt(b, first*digestSize)
	if n < len(b) && err != nil && err != io.EOF {
		return nil, fmt.Errorf("origin: %w", err)
	}
	clear(b[n:])
	return b, nil
}

func digestIs(digest, content []byte) bool {
	sum := blake3.Sum256(content)
	return bytes.Equal(sum[:], digest)
}
