// Package ranges orders operations on byte ranges that overlap.
package ranges

import (
	"context"
	"slices"
	"sync"
)

// Queue has each byte held by one operation at a time, in order of arrival. The zero one is ready for use.
type Queue struct {
	mu  sync.Mutex
	all []*Hold // that are held or wait, in order of arrival
}

// Hold is a range that is held.
type Hold struct {
	queue      *Queue
	start, end int64
	before     int     // how many earlier ones overlap
	after      []*Hold // later ones that overlap
	ready      chan struct{}
}

// Lock waits for [start, end); the error is that of ctx. When ctx has ended it fails also where nobody is in the way: who gave up
// must not come after those who were later.
func (q *Queue) Lock(ctx context.Context, start, end int64) (*Hold, error) {
	h := q.add(start, end, true)
	select {
	case <-h.ready:
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil {
		h.Unlock()
		return nil, err
	}
	return h, nil
}

// TryLock gives nil when it would have to wait.
func (q *Queue) TryLock(start, end int64) *Hold { return q.add(start, end, false) }

func (q *Queue) add(start, end int64, wait bool) *Hold {
	h := &Hold{queue: q, start: start, end: end, ready: make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, other := range q.all {
		if other.start < end && start < other.end {
			h.before++
		}
	}
	if h.before == 0 {
		close(h.ready)
	} else if !wait {
		return nil
	}
	for _, other := range q.all {
		if other.start < end && start < other.end {
			other.after = append(other.after, h)
		}
	}
	q.all = append(q.all, h)
	return h
}

// Unlock lets the next ones go.
func (h *Hold) Unlock() {
	q := h.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.all, h)
	q.all = slices.Delete(q.all, i, i+1)
	for _, next := range h.after {
		// One that gave up is still in after: its count is of no interest any more.
		if next.before--; next.before == 0 {
			close(next.ready)
		}
	}
	h.after = nil
}
