package volume

import "sync"

// groupSync has many who want something synced share one sync: each gets one that began after it asked.
type groupSync struct {
	mu   sync.Mutex
	next *syncRound // that has not begun
	turn turn       // one at a time
}

type syncRound struct {
	done chan struct{}
	err  error
}

func newGroupSync() groupSync { return groupSync{turn: newTurn()} }

func (s *groupSync) do(sync func() error) error {
	s.mu.Lock()
	r := s.next
	if r != nil {
		s.mu.Unlock()
		<-r.done
		return r.err
	}
	r = &syncRound{done: make(chan struct{})}
	s.next = r
	s.mu.Unlock()

	s.turn <- struct{}{}
	defer s.turn.give()
	s.mu.Lock()
	s.next = nil
	s.mu.Unlock()
	r.err = sync()
	close(r.done)
	return r.err
}
