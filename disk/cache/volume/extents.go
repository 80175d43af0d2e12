package volume

import (
	"context"
	"io"

	"github.com/zeebo/blake3"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/export"
)

// Extents implements export.Device. While the repository is unavailable, what only it knows is data.
func (v *volume) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	return v.do("extents", offset, length, func() error {
		j := joiner{yield: yield}
		var err error
		switch v.mode {
		case cache.Offline:
			err = v.offline.extents(ctx, offset, offset+length, j.add)
		case cache.Back:
			err = v.back.extents(ctx, offset, offset+length, j.add)
		default:
			err = v.sourceExtents(ctx, offset, offset+length, j.add)
		}
		if err == nil {
			j.end()
		}
		return err
	})
}

// joiner puts neighbours of the same kind together.
type joiner struct {
	yield func(export.Extent) bool
	last  export.Extent
}

func (j *joiner) add(start, end int64, hole bool) bool {
	switch {
	case start >= end:
		return true
	case j.last.Length > 0 && j.last.Hole == hole:
		j.last.Length += end - start
		return true
	case j.last.Length > 0 && !j.yield(j.last):
		j.last.Length = 0
		return false
	}
	j.last = export.Extent{Offset: start, Length: end - start, Hole: hole, Zero: hole}
	return true
}

func (j *joiner) end() {
	if j.last.Length > 0 {
		j.yield(j.last)
	}
}

// sourceExtents asks the source, which may hang, apart: at most so many ranges at a time.
func (v *volume) sourceExtents(ctx context.Context, start, end int64, add func(start, end int64, hole bool) bool) error {
	const atOnce = 256
	type extent struct {
		start, end int64
		hole       bool
	}
	for start < end {
		answer := make(chan []extent, 1)
		err := v.apart(ctx, change{}, func(context.Context, change) error {
			var all []extent
			at := start
			for at < end && len(all) < atOnce {
				from, to, err := v.remote.nextData(at)
				switch {
				case err == io.EOF:
					from, to = end, end
				case fault.Is(err, fault.Unavailable):
					from, to = at, end
				case err != nil:
					return err
				}
				from, to = min(from, end), min(to, end)
				all = append(all, extent{at, from, true}, extent{from, to, false})
				at = to
			}
			answer <- all
			return nil
		})
		if err != nil {
			return err
		}
		for _, x := range <-answer {
			if !add(x.start, x.end, x.hole) {
				return nil
			}
			start = x.end
		}
	}
	return nil
}

// extents of a volume that is all here: a chunk that came in as zeros and did not change since is a hole.
func (o *offline) extents(ctx context.Context, start, end int64, add func(start, end int64, hole bool) bool) error {
	if !o.ready.Load() {
		return o.notReady()
	}
	const atOnce = 4096
	zero := blake3.Sum256(zeros[:chunkSize])
	lastStart, lastEnd := o.v.chunkRange(o.dirty.size - 1)
	zeroOfLast := blake3.Sum256(zeros[:lastEnd-lastStart])
	for start < end && ctx.Err() == nil {
		first, last := chunksIn(start, end-start)
		last = min(last, first+atOnce)
		digests, err := o.origins(first, last)
		if err != nil {
			return err
		}
		for c := first; c < last; c++ {
			digest := [digestSize]byte(digests[(c-first)*digestSize:])
			hole := !o.dirty.has(c) && (digest == zero || c == o.dirty.size-1 && digest == zeroOfLast)
			_, to := o.v.chunkRange(c)
			to = min(to, end)
			if !add(start, to, hole) {
				return nil
			}
			start = to
		}
	}
	return ctx.Err()
}
