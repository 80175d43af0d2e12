// Package turn gives operations on one machine their turns: one at a time per machine, in the order of
// asking, except that an urgent one (kill, remove) cancels those before it and goes next.
package turn

import (
	"context"
	"slices"
	"sync"

	"hayloft/cloud/fault"
)

// ErrInterrupted is the cause of a context that an urgent operation cancelled.
var ErrInterrupted = fault.Errorf(fault.Busy, "interrupted by a kill or remove of the machine")

// Table holds the lines of all machines. The zero value is ready.
type Table struct {
	mu    sync.Mutex
	lines map[int]*line
}

type line struct {
	holder *ticket
	queue  []*ticket
}

type ticket struct {
	urgent bool
	ready  chan struct{}
	cancel context.CancelCauseFunc
}

// Take waits for the machine's turn. The context it returns ends when an urgent operation wants the
// turn; context.Cause then is ErrInterrupted. done must be called exactly once.
func (t *Table) Take(ctx context.Context, id int) (turn context.Context, done func(), err error) {
	return t.wait(ctx, id, false)
}

// Interrupt cancels everything that is not urgent on this machine and waits for the turn.
func (t *Table) Interrupt(ctx context.Context, id int) (turn context.Context, done func(), err error) {
	return t.wait(ctx, id, true)
}

func (t *Table) wait(ctx context.Context, id int, urgent bool) (context.Context, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	turn, cancel := context.WithCancelCause(ctx)
	own := &ticket{urgent: urgent, ready: make(chan struct{}), cancel: cancel}
	t.enter(id, own)
	done := func() {
		t.leave(id, own)
		cancel(nil)
	}
	select {
	case <-own.ready:
		return turn, done, nil
	case <-turn.Done():
		done()
		return nil, nil, context.Cause(turn)
	}
}

func (t *Table) enter(id int, own *ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines == nil {
		t.lines = make(map[int]*line)
	}
	l := t.lines[id]
	if l == nil {
		l = &line{}
		t.lines[id] = l
	}
	place := len(l.queue)
	if own.urgent {
		if l.holder != nil && !l.holder.urgent {
			l.holder.cancel(ErrInterrupted)
		}
		place = 0
		for i, w := range l.queue {
			if w.urgent {
				place = i + 1
			} else {
				w.cancel(ErrInterrupted)
			}
		}
	}
	l.queue = slices.Insert(l.queue, place, own)
	l.next()
}

func (t *Table) leave(id int, own *ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lines[id]
	if l.holder == own {
		l.holder = nil
	} else if i := slices.Index(l.queue, own); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	}
	l.next()
	if l.holder == nil {
		delete(t.lines, id)
	}
}

func (l *line) next() {
	if l.holder != nil || len(l.queue) == 0 {
		return
	}
	l.holder = l.queue[0]
	l.queue = slices.Delete(l.queue, 0, 1)
	close(l.holder.ready)
}
