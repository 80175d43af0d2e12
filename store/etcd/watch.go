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
		if progress || broken.IsZero() { // it had worked again, though perhaps nothing changed
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

// changes opens one etcd watch on a stream of its own, until end is called. etcd's client would put all
// watches on one stream, which stops for ever when many of them end at once in the server's own process
// (client and server then wait for each other to take a message).
func (s *Store) changes(ctx context.Context, key string, opts ...clientv3.OpOption) (changes clientv3.WatchChan, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	watcher := s.watcher()
	return watcher.Watch(ctx, s.prefix+key, opts...), func() {
		cancel()
		_ = watcher.Close() // it only reports that the stream was cancelled
	}
}

// stream delivers until etcd ends the watch; it can be resumed unless the history is gone. progress: etcd took it up.
func (w *watch) stream(ctx context.Context) (progress, resumable bool) {
	changes, end := w.store.changes(clientv3.WithRequireLeader(ctx), w.prefix, clientv3.WithPrefix(), clientv3.WithRev(w.after+1),
		clientv3.WithCreatedNotify())
	defer end()
	for {
		select {
		case resp, ok := <-changes:
			if err := resp.Err(); err != nil || !ok {
				return progress, !errors.Is(err, rpctypes.ErrCompacted)
			}
			progress = true
			if !w.deliver(ctx, resp.Events) {
				return progress, false
			}
		case <-ctx.Done():
			return progress, false
		}
	}
}

func (w *watch) deliver(ctx context.Context, events []*clientv3.Event) bool {
	if len(events) == 0 {
		return true
	}
	select {
	case w.events <- w.translate(events):
		w.after = events[len(events)-1].Kv.ModRevision
		return true
	case <-ctx.Done():
		return false
	}
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
