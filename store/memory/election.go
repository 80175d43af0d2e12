package memory

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// leadership is a candidate's key and, once no older candidate is left, the leadership itself.
type leadership struct {
	client *Store
	key    string
	fence  store.Cond
	lost   chan struct{}
	once   sync.Once
}

// Campaign implements store.Store: candidates lead in the order in which they came.
func (s *Store) Campaign(ctx context.Context, name, value string) (store.Leadership, error) {
	prefix, err := store.ElectionKeys(name)
	if err != nil {
		return nil, err
	}
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	l, err := s.enter(prefix, value)
	if err != nil {
		return nil, err
	}
	for {
		leads, changed := s.data.leads(prefix, l)
		if leads && s.ctx.Err() != nil { // only because Close ended the ones before it first
			l.end()
			return nil, fault.Errorf(fault.Unavailable, "memory store is closed")
		}
		if leads {
			return l, nil
		}
		select {
		case <-changed:
		case <-l.lost:
			return nil, fault.Errorf(fault.Unavailable, "election %s: the candidate was removed while waiting", name)
		case <-ctx.Done():
			l.end()
			return nil, ctx.Err()
		}
	}
}

func (s *Store) enter(prefix, value string) (*leadership, error) {
	l := &leadership{client: s, lost: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leading == nil {
		return nil, fault.Errorf(fault.Unavailable, "memory store is closed")
	}
	s.leading[l] = struct{}{}
	s.data.enter(l, prefix, value)
	return l, nil
}

func (d *data) enter(l *leadership, prefix, value string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l.key = fmt.Sprintf("%s%016x", prefix, d.revision+1)
	l.fence = store.Cond{Key: l.key, Revision: d.revision + 1}
	if d.candidates == nil {
		d.candidates = map[string]*leadership{}
	}
	d.candidates[l.key] = l
	d.commit([]store.Op{store.Put(l.key, []byte(value))})
}

// leads tells whether no candidate below the prefix is older; if not, changed closes when to ask again.
func (d *data) leads(prefix string, l *leadership) (leads bool, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	oldest := d.oldest(prefix)
	return oldest == l, d.changed
}

func (d *data) oldest(prefix string) *leadership {
	var oldest *leadership
	for key, c := range d.candidates {
		if strings.HasPrefix(key, prefix) && (oldest == nil || c.fence.Revision < oldest.fence.Revision) {
			oldest = c
		}
	}
	return oldest
}

// Depose ends the leadership of the named election as if its lease had expired: for tests of what a
// former leader may still do. It tells whether anybody led.
func (s *Store) Depose(name string) bool {
	prefix, err := store.ElectionKeys(name)
	if err != nil {
		return false
	}
	s.data.mu.Lock()
	l := s.data.oldest(prefix)
	s.data.mu.Unlock()
	if l == nil {
		return false
	}
	l.end()
	return true
}

// end removes the candidate's key and tells its holder.
func (l *leadership) end() {
	l.once.Do(func() {
		d := l.client.data
		d.mu.Lock()
		delete(d.candidates, l.key)
		d.commit([]store.Op{store.Del(l.key)})
		d.mu.Unlock()
		close(l.lost)
		l.client.mu.Lock()
		delete(l.client.leading, l)
		l.client.mu.Unlock()
	})
}

func (l *leadership) Fence() store.Cond     { return l.fence }
func (l *leadership) Lost() <-chan struct{} { return l.lost }

func (l *leadership) Resign(context.Context) error {
	l.end()
	return nil
}
