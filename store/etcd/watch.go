package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"hayloft/store"
)

// resumeWait is how long a watch waits before it asks again after etcd ended it (no leader, a member
// went away); resumeLimit how long it tries before it leaves the matter to the caller.
const (
	resumeWait  = 100 * time.Millisecond
	resumeLimit = 30 * time.Second
)

// Watch implements store.Store. It goes on by itself, without a gap, when the connection or the cluster's
// leader was lost for less than half a minute.
func (s *Store) Watch(ctx context.Context, prefix string, revision int64) (<-chan []store.Event, error) {
	call, done, err := s.bound(ctx)
	if err != nil {
		return nil, err
	}
	events := make(chan []store.Event)
	w := &watch{store: s, prefix: prefix, after: revision, events: events}
	ok := s.own(func() {
		defer close(events)
		defer done()
		w.run(call)
	})
	if !ok {
		done()
		return nil, s.closedError()
	}
	return events, nil
}

// own runs a goroutine that ends with the store's context and that Close waits for.
func (s *Store) own(run func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.owned.Go(run)
	return true
}

type watch struct {
	store  *Store
	prefix string
	after  int64 // everything up to this revision was delivered
	events chan<- []store.Event
}

func (w *watch) run(ctx context.Context) {
	var broken time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		progress, resumable := w.stream(ctx)
		if !resumable {
			return
		}
		if progress || broken.IsZero() {
			broken = time.Now()
		}
		if time.Since(broken) > resumeLimit {
			return
		}
		timer.Reset(resumeWait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// stream delivers until etcd ends the watch; it can be resumed unless the history is gone.
func (w *watch) stream(ctx context.Context) (progress, resumable bool) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	responses := w.store.client.Watch(ctx, w.store.prefix+w.prefix, clientv3.WithPrefix(), clientv3.WithRev(w.after+1))
	for resp := range responses {
		if err := resp.Err(); err != nil {
			return progress, !errors.Is(err, rpctypes.ErrCompacted)
		}
		progress = true
		if len(resp.Events) == 0 {
			continue
		}
		select {
		case w.events <- w.translate(resp.Events):
			w.after = resp.Events[len(resp.Events)-1].Kv.ModRevision
		case <-ctx.Done():
			return progress, false
		}
	}
	return progress, true
}

func (w *watch) translate(events []*clientv3.Event) []store.Event {
	batch := make([]store.Event, len(events))
	for i, e := range events {
		batch[i] = store.Event{
			Record:  store.Record{Key: string(e.Kv.Key[len(w.store.prefix):]), Value: e.Kv.Value, Revision: e.Kv.ModRevision},
			Deleted: e.Type == mvccpb.Event_DELETE,
		}
	}
	return batch
}
