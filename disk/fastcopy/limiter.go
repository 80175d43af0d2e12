package fastcopy

import (
	"context"
	"slices"
	"sync"

	"hayloft/cloud/fault"
)

// Limiter lets so many copies go on at once on this host, and so many from one repository. Those that wait go in the
// order that they came, past those whose repository is busy. Safe for concurrent use.
type Limiter struct {
	host, repository int

	mu      sync.Mutex
	running map[string]int
	total   int
	queue   []*waiter
}

type waiter struct {
	repository string
	position   chan int // the newest position, 0 when it is its turn
	told       int
}

// NewLimiter makes one; 0 is no bound.
func NewLimiter(host, repository int) *Limiter {
	return &Limiter{host: host, repository: repository, running: map[string]int{}}
}

// Acquire waits for a turn to copy from a repository, until ctx ends. waiting may be nil; it is called with how many turns
// of others are to come before this one, plus one, at first and whenever that changes, and not when the turn comes at once.
// release gives the turn back; more than once is fine.
func (l *Limiter) Acquire(ctx context.Context, repository string, waiting func(position int)) (release func(), err error) {
	l.mu.Lock()
	w := &waiter{repository: repository, position: make(chan int, 1)}
	l.queue = append(l.queue, w)
	l.proceed()
	l.mu.Unlock()
	for {
		select {
		case position := <-w.position:
			if position == 0 {
				return sync.OnceFunc(func() { l.release(repository) }), nil
			}
			if waiting != nil {
				waiting(position)
			}
		case <-ctx.Done():
			if l.leave(w) {
				return nil, fault.Errorf(fault.ClassOf(ctx.Err()), "wait for other copies from %s: %w", repository, ctx.Err())
			}
			l.release(repository) // it had become its turn
			return nil, ctx.Err()
		}
	}
}

// leave takes a waiter out of the queue; false when it is not there any more.
func (l *Limiter) leave(w *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.queue, w)
	if i < 0 {
		return false
	}
	l.queue = slices.Delete(l.queue, i, i+1)
	l.proceed()
	return true
}

func (l *Limiter) release(repository string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.running[repository]--; l.running[repository] == 0 {
		delete(l.running, repository)
	}
	l.proceed()
}

// proceed gives turns to who can have them, and tells the others where they are.
func (l *Limiter) proceed() {
	l.queue = slices.DeleteFunc(l.queue, func(w *waiter) bool {
		if l.host > 0 && l.total >= l.host || l.repository > 0 && l.running[w.repository] >= l.repository {
			return false
		}
		l.total++
		l.running[w.repository]++
		w.tell(0)
		return true
	})
	for i, w := range l.queue {
		w.tell(i + 1)
	}
}

// tell replaces what was not read yet. The limiter is locked.
func (w *waiter) tell(position int) {
	if position != 0 && position == w.told {
		return
	}
	w.told = position
	select {
	case <-w.position:
	default:
	}
	w.position <- position
}
