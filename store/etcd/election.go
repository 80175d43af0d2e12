package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// resignLimit bounds giving up leaderships in Close; what it does not reach runs out with its lease.
const resignLimit = 5 * time.Second

// leadership is a key under a lease of its own: a candidate's while older keys exist below the prefix,
// the leader's after that.
type leadership struct {
	store   *Store
	session *concurrency.Session
	fence   store.Cond
	lost    chan struct{}

	mu       sync.Mutex
	resigned bool
}

// Campaign implements store.Store: candidates lead in the order in which they came. A leader that dies
// is replaced when its lease runs out (ElectionTTL).
func (s *Store) Campaign(ctx context.Context, name, value string) (store.Leadership, error) {
	prefix, err := store.ElectionKeys(name)
	if err != nil {
		return nil, err
	}
	call, done, err := s.bound(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if !s.begin() {
		return nil, s.closedError()
	}
	defer s.owned.Done()
	l, err := s.enter(call, prefix, value)
	if err != nil {
		return nil, s.classify(ctx, err)
	}
	if err := l.await(call, prefix); err != nil {
		l.abandon()
		return nil, s.classify(ctx, fmt.Errorf("election %s: %w", name, err))
	}
	if s.isClosed() { // it leads only because Close gave up the leadership of another candidate first
		l.abandon()
		return nil, s.closedError()
	}
	return l, nil
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// enter writes the candidate's key under a fresh lease and watches over it.
func (s *Store) enter(ctx context.Context, prefix, value string) (*leadership, error) {
	lease, err := s.client.Grant(ctx, int64(s.ttl/time.Second))
	if err != nil {
		return nil, err
	}
	// The session outlives the campaign's context and ends with the client.
	session, err := concurrency.NewSession(s.client, concurrency.WithLease(lease.ID))
	if err != nil {
		return nil, err
	}
	l := &leadership{store: s, session: session, lost: make(chan struct{})}
	l.fence.Key = fmt.Sprintf("%s%016x", prefix, lease.ID)
	put, err := s.client.Put(ctx, s.prefix+l.fence.Key, value, clientv3.WithLease(lease.ID))
	if err != nil {
		l.abandon()
		return nil, err
	}
	l.fence.Revision = put.Header.Revision
	if !s.lead(l) {
		l.abandon()
		return nil, s.closedError()
	}
	return l, nil
}

// begin makes Close wait for a campaign, which gives its lease back first.
func (s *Store) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.owned.Add(1)
	}
	return !s.closed
}

func (s *Store) lead(l *leadership) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.leading[l] = struct{}{}
	s.owned.Go(l.guard)
	return true
}

// await returns when no older key is left below the prefix.
func (l *leadership) await(ctx context.Context, prefix string) error {
	client, prefix := l.store.client, l.store.prefix+prefix
	newestOlder := append(clientv3.WithLastCreate(), clientv3.WithMaxCreateRev(l.fence.Revision-1))
	for {
		older, err := client.Get(ctx, prefix, newestOlder...)
		if err != nil {
			return err
		}
		if len(older.Kvs) == 0 {
			return l.confirm(ctx)
		}
		if err := l.awaitDeletion(ctx, string(older.Kvs[0].Key[len(l.store.prefix):]), older.Header.Revision+1); err != nil {
			return err
		}
	}
}

// awaitDeletion returns when the key was deleted or it is time to look again: nobody waits for ever on a
// watch alone.
func (l *leadership) awaitDeletion(ctx context.Context, key string, revision int64) error {
	changes, end := l.store.changes(clientv3.WithRequireLeader(ctx), key, clientv3.WithRev(revision), clientv3.WithFilterPut())
	defer end()
	again := time.NewTimer(l.store.ttl)
	defer again.Stop()
	for {
		select {
		case resp, ok := <-changes:
			if err := resp.Err(); err != nil && !errors.Is(err, rpctypes.ErrCompacted) && !errors.Is(err, rpctypes.ErrNoLeader) {
				return err
			}
			if !ok || len(resp.Events) > 0 || resp.Err() != nil {
				return ctx.Err()
			}
		case <-again.C:
			return nil
		case <-l.lost:
			return fault.Errorf(fault.Unavailable, "the candidate's lease ran out while waiting")
		}
	}
}

// confirm makes sure that the key was not lost while older ones were waited for.
func (l *leadership) confirm(ctx context.Context) error {
	own, err := l.find(ctx)
	if err == nil && !own {
		err = fault.Errorf(fault.Unavailable, "the candidate's lease ran out while waiting")
	}
	return err
}

// find tells whether the candidate's key is still there.
func (l *leadership) find(ctx context.Context) (bool, error) {
	own, err := l.store.client.Get(ctx, l.store.prefix+l.fence.Key, clientv3.WithKeysOnly())
	if err != nil {
		return false, err
	}
	return len(own.Kvs) == 1 && own.Kvs[0].ModRevision == l.fence.Revision, nil
}

// guard closes lost when the lease is no longer kept alive, the key is gone or the store closes.
func (l *leadership) guard() {
	ctx, cancel := context.WithCancel(l.store.ctx)
	stop := context.AfterFunc(l.session.Ctx(), cancel)
	defer stop()
	defer cancel()
	l.holds(ctx)
	l.store.mu.Lock()
	delete(l.store.leading, l)
	l.store.mu.Unlock()
	close(l.lost)
	l.session.Orphan()
}

// holds returns when the key is gone or ctx ends.
func (l *leadership) holds(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if l.watchKey(ctx) {
			return
		}
		// The watch ended without a deletion: its history was compacted, perhaps together with one.
		timer.Reset(resumeWait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if own, err := l.find(ctx); err == nil && !own {
			return
		}
	}
}

// watchKey waits for the key's deletion; false when the watch ended before.
func (l *leadership) watchKey(ctx context.Context) (deleted bool) {
	changes, end := l.store.changes(ctx, l.fence.Key, clientv3.WithRev(l.fence.Revision+1), clientv3.WithFilterPut())
	defer end()
	for {
		select {
		case resp, ok := <-changes:
			if len(resp.Events) > 0 || !ok {
				return ok
			}
		case <-ctx.Done():
			return false
		}
	}
}

func (l *leadership) Fence() store.Cond     { return l.fence }
func (l *leadership) Lost() <-chan struct{} { return l.lost }

// Resign implements store.Leadership. When it fails the lease runs out by itself within ElectionTTL.
func (l *leadership) Resign(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resigned {
		return nil
	}
	l.resigned = true
	l.session.Orphan()
	_, err := l.store.client.Revoke(ctx, l.session.Lease())
	if errors.Is(err, rpctypes.ErrLeaseNotFound) || l.store.ctx.Err() != nil {
		err = nil
	}
	return l.store.classify(ctx, err)
}

// abandon gives up what was not won, whether or not the caller's context or the store's has ended.
func (l *leadership) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), resignLimit)
	defer cancel()
	_ = l.Resign(ctx)
}

func (s *Store) resignAll(held []*leadership) {
	ctx, cancel := context.WithTimeout(context.Background(), resignLimit)
	defer cancel()
	var all sync.WaitGroup
	for _, l := range held {
		all.Go(func() { _ = l.Resign(ctx) })
	}
	all.Wait()
}
