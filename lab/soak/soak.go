package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
)

// soak is one run.
type soak struct {
	options
	say      func(string)
	began    time.Time
	host     string // of the marks of ownership
	work     repository.Writable
	source   disk.Repository
	client   *blockd.Client
	ctx      context.Context // ends with a failure
	cancel   context.CancelFunc
	over     chan struct{} // closed when the time is
	calm     atomic.Bool   // no more kills
	here     sync.RWMutex  // held for writing while the repository is away
	lastAway atomic.Int64  // when the repository was away last, Unix nanoseconds
	images   []*golden
	disks    []*volume
	counts   counts
	watch    watch

	mu     sync.Mutex
	failed []error
}

// counts are of what was done.
type counts struct {
	read, written, operations  atomic.Int64 // bytes, bytes, of all kinds
	sessions, settled, dropped atomic.Int64
	killed, asked, away        atomic.Int64
	refused                    atomic.Int64 // flushes while the repository was away
}

// run is the whole of it. The error has seed, place and difference of all that went wrong.
func run(ctx context.Context, o options, say func(string)) error {
	if err := o.check(); err != nil {
		return err
	}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return err
	}
	o.binary = binary
	if o.dir, err = os.MkdirTemp(o.dir, "soak"); err != nil {
		return err
	}
	s := &soak{options: o, say: say, host: "soak", over: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(ctx)
	defer s.cancel()
	say(fmt.Sprintf("seed %d, %v, in %s", o.seed, o.time, o.dir))
	err = s.all()
	if err != nil {
		err = fmt.Errorf("soak with -seed %d, after %v: %w", o.seed, time.Since(s.began).Round(time.Millisecond), err)
		if o.keep {
			return fmt.Errorf("%w\nkept: %s", err, o.dir)
		}
	}
	return errors.Join(err, os.RemoveAll(o.dir))
}

func (s *soak) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

// random gives each actor numbers of its own.
func (s *soak) random(actor uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, actor)) }

// fail remembers a failure and ends the run.
func (s *soak) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil && (len(s.failed) > 0 || !errors.Is(err, context.Canceled)) && len(s.failed) > 8 {
		return
	}
	if s.ctx.Err() != nil && errors.Is(err, context.Canceled) && len(s.failed) > 0 {
		return // a consequence
	}
	s.failed = append(s.failed, err)
	s.cancel()
}

func (s *soak) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.failed...)
}

// ended says that what goes round and round should come to its end.
func (s *soak) ended() bool {
	select {
	case <-s.over:
		return true
	case <-s.ctx.Done():
		return true
	default:
		return false
	}
}

// sleep waits, but not longer than the time lasts.
func (s *soak) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.over:
	case <-s.ctx.Done():
	}
}

// call asks the data path, again for as long as the repository is away.
func (s *soak) call(what string, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// all makes the images, keeps the data path busy, and looks at what is there in the end.
func (s *soak) all() (err error) {
	s.began = time.Now()
	if err := s.furnish(); err != nil {
		return err
	}
	keeper, err := startKeeper(s.binary, s.path("state"))
	if err != nil {
		return err
	}
	s.client = blockd.NewClient(s.path("state"))
	defer func() { err = errors.Join(err, keeper.stop(), s.clearAway(err != nil)) }()
	if s.watch.atRest, err = s.rest(); err != nil {
		return err
	}
	s.busy()
	if err := s.failure(); err != nil {
		return err
	}
	if err := s.finish(); err != nil {
		return err
	}
	return s.sameAtRest()
}

// furnish makes directories and images.
func (s *soak) furnish() error {
	for _, name := range []string{"state", "repository", "base", "machine"} {
		if err := os.Mkdir(s.path(name), 0o755); err != nil {
			return err
		}
	}
	s.source = disk.Repository{ID: 1, Driver: "path", Path: s.path("repository")}
	repo, err := drivers.Open(s.source)
	if err != nil {
		return err
	}
	s.work = repo.(repository.Writable)
	r := s.random(1)
	for i, size := range sizes {
		g := &golden{number: i, bytes: content(r, i, size)}
		if i%2 == 0 || size > 32<<20 {
			g.capacity = int64(size) / 3 / chunk * chunk
		}
		if g.image, err = publish(s.ctx, s.source, repo, i, fmt.Sprintf("golden-%d", i), g.bytes); err != nil {
			return err
		}
		s.images = append(s.images, g)
	}
	for i := range s.options.disks {
		v := newVolume(s, i, r)
		if v.image, err = publish(s.ctx, s.source, repo, 100+i, fmt.Sprintf("persistent-%d", i), v.model[:v.stored]); err != nil {
			return err
		}
		v.image.Persistent = true
		s.disks = append(s.disks, v)
	}
	return nil
}

// busy is the time of the run.
func (s *soak) busy() {
	var lanes, rest sync.WaitGroup
	for i := range s.bases {
		lanes.Go(func() { s.lane(i) })
	}
	for _, v := range s.disks {
		lanes.Go(v.lane)
	}
	for _, f := range []func(){s.kill, s.loseRepository, s.dropBases, s.sample, s.tell} {
		rest.Go(f)
	}
	// The last third has no kills, so that what one process gathers is seen.
	third := time.AfterFunc(s.time*2/3, func() { s.calm.Store(true) })
	t := time.AfterFunc(s.time, func() { close(s.over) })
	lanes.Wait()
	rest.Wait()
	third.Stop()
	t.Stop()
}

// tell says how far it is.
func (s *soak) tell() {
	for next := 10 * time.Second; !s.ended(); next += 10 * time.Second {
		s.sleep(time.Until(s.began.Add(next)))
		s.say(s.line())
	}
}

func (s *soak) line() string {
	c := &s.counts
	var b strings.Builder
	fmt.Fprintf(&b, "%v of %v: %d MB read and compared, %d MB written, %d operations, %d sessions, %d settled, %d bases dropped, ",
		time.Since(s.began).Round(time.Second), s.time, c.read.Load()>>20, c.written.Load()>>20, c.operations.Load(), c.sessions.Load(), c.settled.Load(), c.dropped.Load())
	fmt.Fprintf(&b, "%d killed, %d asked to end, repository away %d times (%d flushes refused); %s", c.killed.Load(), c.asked.Load(), c.away.Load(), c.refused.Load(), s.watch.line())
	return b.String()
}
