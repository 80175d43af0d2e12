package volume

import (
	"context"
	"slices"
	"sync"
)

// ranges orders operations that overlap: each byte range is held by one of them at a time, in order of arrival.
type ranges struct {
	mu  sync.Mutex
	all []*hold // that are held or wait, in order of arrival
}

type hold struct {
	ranges     *ranges
	start, end int64
	before     int     // how many earlier ones overlap
	after      []*hold // later ones that overlap
	ready      chan struct{}
}

// lock waits for [start, end); the error is that of ctx.
func (r *ranges) lock(ctx context.Context, start, end int64) (*hold, error) {
	h := r.add(start, end, true)
	select {
	case <-h.ready:
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil { // also when both came: who gave up must not come after those who were later
		h.unlock()
		return nil, err
	}
	return h, nil
}

// tryLock gives nil when it would have to wait.
func (r *ranges) tryLock(start, end int64) *hold { return r.add(start, end, false) }

func (r *ranges) add(start, end int64, wait bool) *hold {
	h := &hold{ranges: r, start: start, end: end, ready: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, other := range r.all {
		if other.start < end && start < other.end {
			h.before++
		}
	}
	if h.before == 0 {
		close(h.ready)
	} else if !wait {
		return nil
	}
	for _, other := range r.all {
		if other.start < end && start < other.end {
			other.after = append(other.after, h)
		}
	}
	r.all = append(r.all, h)
	return h
}

// unlock lets the next ones go; also one that still waits may be given up.
func (h *hold) unlock() {
	r := h.ranges
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.all, h)
	r.all = slices.Delete(r.all, i, i+1)
	for _, next := range h.after {
		// One that gave up is still in after: its count is of no interest any more.
		if next.before--; next.before == 0 {
			close(next.ready)
		}
	}
	h.after = nil
}
