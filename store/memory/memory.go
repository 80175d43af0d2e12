// Package memory is the store's twin in memory, for tests and simulations: the same contract as etcd, with
// nothing kept after the process. Several clients of one memory store behave like several servers.
package memory

import (
	"context"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// Store is one client of a memory store.
type Store struct {
	data   *data
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu      sync.Mutex
	leading map[*leadership]struct{}
	watches sync.WaitGroup
}

// New makes an empty store and its first client.
func New() *Store { return newClient(&data{changed: make(chan struct{})}) }

// Client makes another client of the same data, as another process would have. It is closed on its own.
func (s *Store) Client() *Store { return newClient(s.data) }

func newClient(d *data) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	return &Store{data: d, ctx: ctx, cancel: cancel, leading: map[*leadership]struct{}{}}
}

func (s *Store) check(ctx context.Context) error {
	if s.ctx.Err() != nil {
		return fault.Errorf(fault.Unavailable, "memory store is closed")
	}
	return ctx.Err()
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := s.check(ctx); err != nil {
		return store.Record{}, err
	}
	if err := store.CheckKey(key); err != nil {
		return store.Record{}, err
	}
	return s.data.get(key), nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Record, int64, error) {
	if err := s.check(ctx); err != nil {
		return nil, 0, err
	}
	records, revision := s.data.list(prefix)
	return records, revision, nil
}

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	if err := s.check(ctx); err != nil {
		return 0, err
	}
	if err := store.Check(conds, ops); err != nil {
		return 0, err
	}
	return s.data.apply(conds, ops)
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, revision int64) (<-chan []store.Event, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	// The lock orders the Add before Close's Wait.
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	events := make(chan []store.Event)
	s.watches.Go(func() {
		defer close(events)
		s.deliver(ctx, prefix, revision, events)
	})
	return events, nil
}

func (s *Store) deliver(ctx context.Context, prefix string, after int64, events chan<- []store.Event) {
	for {
		batch, last, changed, ok := s.data.since(after, prefix)
		if !ok {
			return
		}
		after = max(after, last)
		if len(batch) > 0 {
			select {
			case events <- batch:
				continue
			case <-ctx.Done():
				return
			case <-s.ctx.Done():
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// Compact forgets the history before the revision: watches that have not come that far are closed. The
// store does it by itself as its history grows; tests do it to see that callers list again.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	return s.data.compact(revision)
}

// Close ends this client's watches and leaderships; other clients and the data live on. Idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	s.cancel()
	held := s.leading
	s.leading = nil
	s.mu.Unlock()
	for l := range held {
		l.end()
	}
	s.watches.Wait()
	return nil
}
