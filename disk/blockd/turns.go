package blockd

import (
	"context"
	"sync"

	"hayloft/internal/waiting"
)

// turns serialises what is done to each name.
type turns struct {
	mu   sync.Mutex
	held map[string]*turn
}

type turn struct {
	taken   chan struct{}
	waiting int
}

// take waits until nobody else works on name.
func (t *turns) take(ctx context.Context, name string) (give func(), err error) {
	t.mu.Lock()
	if t.held == nil {
		t.held = map[string]*turn{}
	}
	x := t.held[name]
	if x == nil {
		x = &turn{taken: make(chan struct{}, 1)}
		t.held[name] = x
	}
	x.waiting++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if x.waiting--; x.waiting == 0 {
			delete(t.held, name)
		}
	}
	ctx, done := waiting.On(ctx, "another call about %s", name)
	defer done()
	select {
	case x.taken <- struct{}{}:
		return func() { <-x.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
