package volume

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// change is new content for a range: p, or zeros where p is nil.
type change struct {
	offset, length int64
	p              []byte
	noHole         bool // zeros that take up space
}

func writeOf(p []byte, offset int64) change {
	return change{offset: offset, length: int64(len(p)), p: p}
}

func (c change) end() int64 { return c.offset + c.length }

// apply has the source take c, and the cache with it. Bits of what c covers are cleared before the source is
// changed; with keep, chunks that were here are changed here too and get their bits back, and whole chunks come here.
// A crash at any point leaves no bit on a chunk that differs from the source's.
func (v *volume) apply(ctx context.Context, c change, keep bool) error {
	return v.applyAs(ctx, c, keep, v.patience)
}

// applyOnce does not try again while the source is unavailable.
func (v *volume) applyOnce(ctx context.Context, c change, keep bool) error {
	return v.applyAs(ctx, c, keep, 0)
}

func (v *volume) applyAs(ctx context.Context, c change, keep bool, patience time.Duration) error {
	h, err := v.ranges.Lock(ctx, c.offset, c.end())
	if err != nil {
		return err
	}
	defer h.Unlock()
	u, err := v.beginUpdate(c, keep)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	err = v.patientFor(ctx, patience, func() error {
		if c.p == nil {
			return v.remote.zero(c.offset, c.length, c.noHole)
		}
		return v.remote.writeAt(c.p, c.offset)
	})
	v.present.holdBack(chunksIn(c.offset, c.length))
	v.endUpdate(u, err == nil && keep)
	if c.p == nil && !keep {
		v.local(v.data.Punch(c.offset, c.length))
	}
	return err
}

// writers are the changes under way in chunks that they cover in part: several may be in one chunk.
type writers struct {
	mu      sync.Mutex
	byChunk map[int64]*shared
}

type shared struct {
	writers int
	present bool // before the first of them came
	broken  bool // one of them did not change the cached chunk
}

// update is a change's work on the cache: whole chunks [first, last), and at most two in part.
type update struct {
	change
	first, last int64
	edges       [2]int64
	n           int // of edges
}

func (v *volume) beginUpdate(c change, keep bool) (update, error) {
	u := update{change: c}
	first, last := chunksIn(c.offset, c.length)
	if !keep {
		// Nobody sets bits again but a fill, which waits for this change to end.
		return u, v.drop(first, last)
	}
	u.first, u.last = first, last
	if start, _ := v.chunkRange(first); start < c.offset {
		u.edge(first)
		u.first++
	}
	if _, end := v.chunkRange(last - 1); end > c.end() && last > u.first {
		u.edge(last - 1)
		u.last--
	}
	if u.first < u.last {
		n, err := v.clearPresent(u.first, u.last)
		if err != nil {
			return u, err
		}
		v.residents.used.Add(-n)
	}
	v.writers.mu.Lock()
	defer v.writers.mu.Unlock()
	for i, chunk := range u.edges[:u.n] {
		if err := v.joinChunk(chunk); err != nil {
			for _, joined := range u.edges[:i] {
				v.leaveChunk(joined, false)
			}
			return u, err
		}
	}
	return u, nil
}

func (u *update) edge(chunk int64) {
	u.edges[u.n] = chunk
	u.n++
}

func (v *volume) joinChunk(chunk int64) error {
	s := v.writers.byChunk[chunk]
	if s == nil {
		s = &shared{present: v.present.has(chunk)}
	}
	if _, err := v.clearPresent(chunk, chunk+1); err != nil {
		return err
	}
	s.writers++
	v.writers.byChunk[chunk] = s
	return nil
}

// leaveChunk sets the bit again when the last one leaves and all of them kept the chunk right.
func (v *volume) leaveChunk(chunk int64, right bool) {
	s := v.writers.byChunk[chunk]
	s.broken = s.broken || !right
	if s.writers--; s.writers > 0 {
		return
	}
	delete(v.writers.byChunk, chunk)
	if !s.present {
		return
	}
	if !s.broken {
		err := v.setPresent(chunk, chunk+1)
		if err == nil {
			return
		}
		v.local(err)
	}
	v.residents.used.Add(-1)
	v.giveBack(chunk, chunk+1)
}

// endUpdate changes the cached chunks, unless right is false, and ends the change.
func (v *volume) endUpdate(u update, right bool) {
	if u.first < u.last {
		v.keepWhole(u, right)
	}
	if u.n == 0 {
		return
	}
	var stored [2]bool
	for i, chunk := range u.edges[:u.n] {
		stored[i] = right && v.keepEdge(u, chunk)
	}
	v.writers.mu.Lock()
	defer v.writers.mu.Unlock()
	for i, chunk := range u.edges[:u.n] {
		v.leaveChunk(chunk, stored[i])
	}
}

func (v *volume) keepEdge(u update, chunk int64) bool {
	v.writers.mu.Lock()
	s := v.writers.byChunk[chunk]
	worth := s.present && !s.broken
	v.writers.mu.Unlock()
	if !worth {
		return false
	}
	start, end := v.chunkRange(chunk)
	err := v.putChange(u.change, max(start, u.offset), min(end, u.end()))
	if err != nil {
		v.local(err)
	}
	return err == nil
}

// keepWhole stores the chunks that the change covers whole, as far as there is room.
func (v *volume) keepWhole(u update, right bool) {
	last := u.first
	if right && v.residents.limit < 0 {
		last = u.last
		v.residents.used.Add(last - u.first)
	}
	// Zeros without end are not worth anybody's place.
	for right && last < u.last && u.last-u.first <= flightChunks*4 && v.room() {
		last++
	}
	if last > u.first {
		start, _ := v.chunkRange(u.first)
		_, end := v.chunkRange(last - 1)
		err := v.putChange(u.change, start, end)
		if err == nil {
			err = v.setPresent(u.first, last)
		}
		if err != nil {
			v.local(err)
			v.residents.used.Add(u.first - last)
			last = u.first
		}
	}
	if last < u.last {
		v.giveBack(last, u.last)
	}
}

// putChange writes the part [start, end) of a change to the data file.
func (v *volume) putChange(c change, start, end int64) error {
	if c.p == nil {
		return v.data.Punch(start, end-start)
	}
	_, err := v.data.WriteAt(c.p[start-c.offset:end-c.offset], start)
	return err
}
