package way

import (
	"context"
	"sync"

	"hayloft/disk"
	"hayloft/disk/localstore"
)

type flightKey struct {
	digest string
	kind   localstore.Kind
}

// flight is one base on its way to this host, and everybody who waits for it. It flies as long as one does.
type flight struct {
	cancel context.CancelFunc
	ended  chan struct{}
	path   string
	read   int64
	err    error

	mu        sync.Mutex
	listeners map[*listener]bool
	givenUp   bool // nobody waited any more: it is ending
}

type listener struct{ report func(done, total int64) }

func (f *flight) report(done, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range f.listeners {
		l.report(done, total)
	}
}

// base gives the path of a complete base, fetched when it is not there yet: once, however many ask. read is what
// the repository was asked for on behalf of this caller. The caller has pinned the digest.
// rate, in bytes a second, bounds one that this call begins; 0: nothing does.
func (w *Way) base(ctx context.Context, img disk.Image, kind localstore.Kind, rate int64, report func(done, total int64)) (path string, read int64, err error) {
	key := flightKey{img.Digest, kind}
	for {
		if err := ctx.Err(); err != nil {
			return "", 0, err
		}
		w.mu.Lock()
		f := w.flights[key]
		first := f == nil
		if first && kind == volumeKind {
			f = w.start(ctx, key, img, rate) // which looks itself
		} else if first {
			// Looked for under the lock: a flight that ended has its base in the store.
			path, err := w.store.Find(ctx, img.Digest, kind)
			if err != nil || path != "" {
				w.mu.Unlock()
				return path, 0, err
			}
			f = w.start(ctx, key, img, rate)
		}
		me := &listener{report}
		f.mu.Lock()
		f.listeners[me] = true
		f.mu.Unlock()
		w.mu.Unlock()

		select {
		case <-f.ended:
		case <-ctx.Done():
		}
		f.leave(me)
		if err := ctx.Err(); err != nil {
			return "", 0, err
		}
		if f.err != nil && f.wasGivenUp() {
			continue // before we came
		}
		if first {
			read = f.read
		}
		return f.path, read, f.err
	}
}

// start begins a flight that outlives its first caller if others wait. The caller holds w.mu.
func (w *Way) start(ctx context.Context, key flightKey, img disk.Image, rate int64) *flight {
	flying, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{cancel: cancel, ended: make(chan struct{}), listeners: map[*listener]bool{}}
	w.flights[key] = f
	go func() {
		defer close(f.ended)
		defer cancel()
		switch key.kind {
		case localstore.Tree:
			f.path, f.read, f.err = w.fetch(flying, img, f.report)
		case volumeKind:
			f.path, f.read, f.err = w.fillVolume(flying, img, f.report)
		default:
			f.path, f.read, f.err = w.fill(flying, img, rate, f.report)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.flights, key)
	}()
	return f
}

func (f *flight) hasEnded() bool {
	select {
	case <-f.ended:
		return true
	default:
		return false
	}
}

func (f *flight) wasGivenUp() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.givenUp
}

// leave ends a flight that nobody waits for any more, and waits until nothing of it is left. Who comes meanwhile waits for
// that too: what the old flight takes back must not be a new one's.
func (f *flight) leave(me *listener) {
	f.mu.Lock()
	delete(f.listeners, me)
	last := len(f.listeners) == 0
	f.givenUp = f.givenUp || last && !f.hasEnded()
	f.mu.Unlock()
	if last {
		f.cancel()
		<-f.ended
	}
}
