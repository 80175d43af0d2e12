package lvm

import (
	"context"
	"sync"
)

// batcher does one thing for several callers at a time: who asks while it is being done waits for the next time, which is
// done for all who wait by then. So a caller's turn begins after its call.
type batcher[R any] struct {
	run func(ctx context.Context, names []string) (R, error)

	mu      sync.Mutex
	next    *batch[R]
	running bool
}

type batch[R any] struct {
	names  []string
	done   chan struct{} // closed when result and err are there
	result R
	err    error
}

// do returns what the turn that is done for name among others came to, or when ctx ends; the turn goes on then.
func (b *batcher[R]) do(ctx context.Context, name string) (R, error) {
	b.mu.Lock()
	if b.next == nil {
		b.next = &batch[R]{done: make(chan struct{})}
	}
	mine := b.next
	mine.names = append(mine.names, name)
	if !b.running {
		b.running = true
		go b.work(context.WithoutCancel(ctx))
	}
	b.mu.Unlock()
	select {
	case <-mine.done:
		return mine.result, mine.err
	case <-ctx.Done():
		var none R
		return none, ctx.Err()
	}
}

// work ends when nobody waits any more.
func (b *batcher[R]) work(ctx context.Context) {
	for {
		b.mu.Lock()
		now := b.next
		b.next = nil
		if now == nil {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		now.result, now.err = b.run(ctx, now.names)
		close(now.done)
	}
}
