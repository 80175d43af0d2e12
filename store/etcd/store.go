// Package etcd keeps the store in etcd: embedded in this process (Embedded), or a cluster that runs
// elsewhere (Connect). Both are the same driver on an etcd client; keys live below a prefix, so that a
// cluster can be shared with others.
package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"hayloft/cloud/fault"
	"hayloft/store"
)

const (
	defaultPrefix      = "/hayloft/v1/"
	defaultElectionTTL = 10 * time.Second
)

// Store is the driver. Make one with Embedded or Connect.
type Store struct {
	client  *clientv3.Client
	watcher func() clientv3.Watcher
	prefix  string
	name    string        // for errors: where this store is
	ttl     time.Duration // of leaderships whose holder has died
	release func() error  // what is closed after the client, if anything

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu      sync.Mutex
	closed  bool
	leading map[*leadership]struct{}
	owned   sync.WaitGroup // watches and leaderships
	once    sync.Once
	closing error
}

func newStore(client *clientv3.Client, watcher func() clientv3.Watcher, prefix, name string, ttl time.Duration, release func() error) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	return &Store{client: client, watcher: watcher, prefix: prefix, name: name, ttl: ttl, release: release,
		ctx: ctx, cancel: cancel, leading: map[*leadership]struct{}{}}
}

// bound ends a call's context also when the store closes.
func (s *Store) bound(ctx context.Context) (context.Context, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if s.ctx.Err() != nil {
		return nil, nil, s.closedError()
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Record{}, err
	}
	call, done, err := s.bound(ctx)
	if err != nil {
		return store.Record{}, err
	}
	defer done()
	resp, err := s.client.Get(call, s.prefix+key)
	if err != nil {
		return store.Record{}, s.classify(ctx, err)
	}
	if len(resp.Kvs) == 0 {
		return store.Record{Key: key}, nil
	}
	return store.Record{Key: key, Value: resp.Kvs[0].Value, Revision: resp.Kvs[0].ModRevision}, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Record, int64, error) {
	call, done, err := s.bound(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	resp, err := s.client.Get(call, s.prefix+prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, s.classify(ctx, err)
	}
	records := make([]store.Record, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		records[i] = store.Record{Key: string(kv.Key[len(s.prefix):]), Value: kv.Value, Revision: kv.ModRevision}
	}
	return records, resp.Header.Revision, nil
}

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	if err := store.Check(conds, ops); err != nil {
		return 0, err
	}
	call, done, err := s.bound(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	compares := make([]clientv3.Cmp, len(conds))
	found := make([]clientv3.Op, len(conds))
	for i, c := range conds {
		compares[i] = clientv3.Compare(clientv3.ModRevision(s.prefix+c.Key), "=", c.Revision)
		found[i] = clientv3.OpGet(s.prefix+c.Key, clientv3.WithKeysOnly())
	}
	changes := make([]clientv3.Op, len(ops))
	for i, o := range ops {
		if o.Delete {
			changes[i] = clientv3.OpDelete(s.prefix + o.Key)
		} else {
			changes[i] = clientv3.OpPut(s.prefix+o.Key, string(o.Value))
		}
	}
	if len(ops) == 0 {
		// Without any request in it etcd would answer from this member alone, perhaps from the past.
		changes = []clientv3.Op{clientv3.OpGet(s.prefix, clientv3.WithKeysOnly())}
	}
	resp, err := s.client.Txn(call).If(compares...).Then(changes...).Else(found...).Commit()
	if err != nil {
		return 0, s.classify(ctx, err)
	}
	if !resp.Succeeded {
		return 0, conflict(conds, resp)
	}
	return resp.Header.Revision, nil
}

func conflict(conds []store.Cond, resp *clientv3.TxnResponse) error {
	for i, c := range conds {
		var revision int64
		if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			revision = kvs[0].ModRevision
		}
		if revision != c.Revision {
			return store.NewConflict(c, revision)
		}
	}
	return fault.Errorf(fault.Busy, "a condition of the transaction does not hold")
}

// Compact forgets the history before the revision: watches that have not come that far are closed. An
// embedded store does it by itself; an external cluster as its administrator configured it.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	call, done, err := s.bound(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, err = s.client.Compact(call, revision, clientv3.WithCompactPhysical())
	return s.classify(ctx, err)
}

// Close implements store.Store. Leaderships are given up first, so that others lead at once.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		held := make([]*leadership, 0, len(s.leading))
		for l := range s.leading {
			held = append(held, l)
		}
		s.mu.Unlock()
		s.resignAll(held)
		s.cancel()
		s.owned.Wait()
		s.closing = s.client.Close()
		if errors.Is(s.closing, context.Canceled) {
			s.closing = nil
		}
		if s.release != nil {
			s.closing = errors.Join(s.closing, s.release())
		}
	})
	return s.closing
}

func (s *Store) closedError() error {
	return fault.Errorf(fault.Unavailable, "%s: store is closed", s.name)
}
