// Package waiting has operations say what they wait for, so that one that takes long explains itself: to its user, and in
// the log. Who wants to know puts a Watch into the context; without one nothing is noted.
package waiting

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Watch knows what is waited for in one operation, in all of its goroutines. It is safe for concurrent use.
type Watch struct {
	mu    sync.Mutex
	waits map[*wait]bool
}

// wait is one thing that is waited for, as part of another.
type wait struct {
	parent *wait
	what   string
	since  time.Time
	inner  int    // waits that are part of it; guarded by Watch.mu
	away   string // what another process says that it waits for
	awayAt time.Time
}

type place struct {
	watch *Watch
	wait  *wait
}

type key struct{}

// New gives a context in which waits are noted.
func New(ctx context.Context) (context.Context, *Watch) {
	w := &Watch{waits: map[*wait]bool{}}
	return context.WithValue(ctx, key{}, place{watch: w}), w
}

// Like gives ctx with what of notes, for work that is done for one caller in the lifetime of another.
func Like(ctx, of context.Context) context.Context {
	if p, ok := of.Value(key{}).(place); ok {
		return context.WithValue(ctx, key{}, p)
	}
	return ctx
}

// On notes that something is waited for, until done is called. Waits in the context that it gives are part of this one.
func On(ctx context.Context, format string, args ...any) (_ context.Context, done func()) {
	p, ok := ctx.Value(key{}).(place)
	if !ok {
		return ctx, func() {}
	}
	t := &wait{parent: p.wait, what: fmt.Sprintf(format, args...), since: time.Now()}
	w := p.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits[t] = true
	if t.parent != nil {
		t.parent.inner++
	}
	return context.WithValue(ctx, key{}, place{w, t}), sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waits, t)
		if t.parent != nil {
			t.parent.inner--
		}
	})
}

// Elsewhere notes what another process says that it waits for on behalf of ctx; "" for nothing.
func Elsewhere(ctx context.Context, what string) {
	p, ok := ctx.Value(key{}).(place)
	if !ok || p.wait == nil {
		return
	}
	p.watch.mu.Lock()
	defer p.watch.mu.Unlock()
	p.wait.away, p.wait.awayAt = what, time.Now()
}

// believed is for how long what another process said is taken for true.
const believed = 30 * time.Second

// Longest is what has been waited for longest, "disk 1: a session of host root@store:22", and for how long as a whole: in a
// part that is tried again and again, none of the attempts takes long. "" for nothing.
func (w *Watch) Longest() (what string, lapse time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var oldest *wait
	for t := range w.waits {
		if t.inner == 0 && (oldest == nil || t.since.Before(oldest.since)) {
			oldest = t
		}
	}
	if oldest == nil {
		return "", 0
	}
	if oldest.away != "" && time.Since(oldest.awayAt) < believed {
		what = ": " + oldest.away
	}
	began := oldest.since
	for t := oldest; t != nil; t = t.parent {
		what, began = ": "+t.what+what, t.since
	}
	return what[2:], time.Since(began)
}

// Every calls say with what has been waited for when that is longer than after, again every time that passes, and with ""
// when it is over, until end is called, which waits for a call under way.
func (w *Watch) Every(after time.Duration, say func(what string, lapse time.Duration)) (end func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(after)
		defer tick.Stop()
		for said := false; ; {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			what, lapse := w.Longest()
			switch {
			case lapse >= after:
				say(what, lapse)
				said = true
			case said:
				say("", 0)
				said = false
			}
		}
	}()
	return sync.OnceFunc(func() { close(stop); <-stopped })
}
