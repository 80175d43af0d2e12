// Package feed carries the ids of changed domains from a driver to the one reader of its Events,
// without blocking the driver and without losing an id: repeats that nobody has read yet are merged.
package feed

import (
	"context"
	"slices"
	"sync"
)

// Feed collects ids. Make one with New.
type Feed struct {
	mu      sync.Mutex
	pending []int
	waiting map[int]bool
	bell    chan struct{}
}

// New makes an empty feed.
func New() *Feed { return &Feed{waiting: make(map[int]bool), bell: make(chan struct{}, 1)} }

// Add announces a change of domain id.
func (f *Feed) Add(id int) {
	f.mu.Lock()
	if !f.waiting[id] {
		f.waiting[id] = true
		f.pending = append(f.pending, id)
	}
	f.mu.Unlock()
	select {
	case f.bell <- struct{}{}:
	default:
	}
}

func (f *Feed) take() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := slices.Clone(f.pending)
	f.pending = f.pending[:0]
	clear(f.waiting)
	return ids
}

// Read delivers ids until ctx ends, then closes the channel; what was not read stays for the next reader.
func (f *Feed) Read(ctx context.Context) <-chan int {
	out := make(chan int)
	go func() {
		defer close(out)
		for {
			ids := f.take()
			for i, id := range ids {
				select {
				case out <- id:
				case <-ctx.Done():
					for _, unread := range ids[i:] {
						f.Add(unread)
					}
					return
				}
			}
			select {
			case <-f.bell:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
