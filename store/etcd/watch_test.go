package etcd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// flapping is an etcd whose watches end now and then. Only the last one has something to tell.
type flapping struct {
	lasts time.Duration
	quiet int // watches that end without a change
}

func (f *flapping) Watch(ctx context.Context, _ string, _ ...clientv3.OpOption) clientv3.WatchChan {
	responses := make(chan clientv3.WatchResponse)
	f.quiet--
	last := f.quiet < 0
	go func() {
		defer close(responses)
		answers := []clientv3.WatchResponse{{Created: true}}
		if last {
			answers = append(answers, clientv3.WatchResponse{Events: []*clientv3.Event{{Kv: &mvccpb.KeyValue{Key: []byte("p/a"), ModRevision: 7}}}})
		}
		for _, answer := range answers {
			select {
			case responses <- answer:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(f.lasts):
		case <-ctx.Done():
		}
	}()
	return responses
}

func (*flapping) RequestProgress(context.Context) error { return nil }
func (*flapping) Close() error                          { return nil }

// TestQuietWatchGoesOn: interruptions far apart are told from one that does not end, also where nothing changes.
func TestQuietWatchGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flapping{lasts: resumeLimit, quiet: 5}
		s := newStore(nil, func() clientv3.Watcher { return f }, "p/", "etcd", time.Minute, nil)
		ctx, cancel := context.WithCancel(t.Context())
		events, err := s.Watch(ctx, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		if batch := <-events; len(batch) != 1 || batch[0].Key != "a" {
			t.Errorf("a watch that was interrupted now and then delivered %+v", batch)
		}
		cancel()
		for range events { // until it has ended
		}
		s.cancel()
		s.owned.Wait()
	})
}
