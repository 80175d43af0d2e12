package way

import (
	"context"
	"sync"
	"time"

	"hayloft/disk"
)

// The numbers of copies at a time that a host makes unless it is told otherwise.
const (
	defaultCopies              = 4
	defaultCopiesPerRepository = 2
)

// copies bounds how many whole images are copied into volumes at a time: on this host, and from each repository.
type copies struct {
	host chan struct{}
	each int

	mu sync.Mutex
	of map[int]chan struct{} // by repository
}

func newCopies(host, each int) *copies {
	if host <= 0 {
		host = defaultCopies
	}
	if each <= 0 {
		each = defaultCopiesPerRepository
	}
	return &copies{host: make(chan struct{}, host), each: each, of: map[int]chan struct{}{}}
}

// enter waits for its turn; remote copies wait for one with their repository first.
func (c *copies) enter(ctx context.Context, repository int, remote bool) (leave func(), err error) {
	turns := []chan struct{}{c.host}
	if remote {
		c.mu.Lock()
		if c.of[repository] == nil {
			c.of[repository] = make(chan struct{}, c.each)
		}
		turns = []chan struct{}{c.of[repository], c.host}
		c.mu.Unlock()
	}
	for i, turn := range turns {
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
			for _, taken := range turns[:i] {
				<-taken
			}
			return nil, ctx.Err()
		}
	}
	return func() {
		for _, taken := range turns {
			<-taken
		}
	}, nil
}

// rated turns bytes of one step into progress that says how fast it is.
func rated(step string, report func(disk.Progress)) func(done, total int64) {
	var (
		mu       sync.Mutex
		at       time.Time // of the last measurement
		before   int64
		rate     int64
		reported bool
	)
	return func(done, total int64) {
		mu.Lock()
		now := time.Now()
		switch passed := now.Sub(at); {
		case !reported || done < before:
			at, before, reported = now, done, true
		case passed >= time.Second:
			rate = int64(float64(done-before) / passed.Seconds())
			at, before = now, done
		}
		r := rate
		mu.Unlock()
		report(disk.Progress{Step: step, Done: done, Total: total, Rate: r})
	}
}
