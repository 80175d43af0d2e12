package blockd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/durable"
	"hayloft/internal/lockfile"
)

const (
	lockFile = "blockd.lock"
	// LogFile is what a daemon's process says, in its state directory; what was said before is in LogFile.1.
	LogFile = "blockd.log"

	takeOverLimit = 20 * time.Second // for the process before this one to end
	idleLimit     = 5 * time.Second

	// garbage is how much of the memory in use may wait to be collected, in percent. Hits make none, and the
	// memory is better used for the page cache.
	garbage = 40
)

// RunConfig is what a daemon's process is run with.
type RunConfig struct {
	Config
	Idle time.Duration // without exports and connections, after which it ends by itself; 0: 5 seconds, negative: never
}

// Run is a daemon's process: it answers at SocketFile in the state directory until ctx ends, a client asks it to, or
// it was of no use for a while. It is the only one of its state directory; one that is just ending is waited for,
// otherwise the error is fault.Busy.
func Run(ctx context.Context, c RunConfig) error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Idle == 0 {
		c.Idle = idleLimit
	}
	if !filepath.IsAbs(c.StateDir) {
		return fault.Errorf(fault.Invalid, "blockd: state directory %q is not absolute", c.StateDir)
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return err
	}
	unlock, err := lockDir(ctx, c.StateDir, takeOverLimit)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	began := time.Now()
	d, err := New(c.Config)
	if err != nil {
		return err
	}
	l, err := Listen(c.StateDir)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	c.Log.Info("data path is up", "version", c.Version, "pid", os.Getpid(), "exports", d.inUse(), "took", time.Since(began))
	idle := newIdle(c.Idle, d.inUse, stop)
	defer idle.stop()
	s := &Server{Service: d, Version: c.Version, End: stop, Connections: idle.connections}
	err = errors.Join(s.Serve(ctx, l), d.Close(), durable.Remove(socketOf(c.StateDir)))
	c.Log.Info("data path ends", "pid", os.Getpid(), "error", err)
	return err
}

// lockDir makes this process the only daemon of the directory until unlock or its death.
func lockDir(ctx context.Context, stateDir string, limit time.Duration) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(stateDir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockfile.Take(ctx, file, limit); err != nil {
		file.Close()
		if fault.Is(err, fault.Busy) {
			return nil, fault.Errorf(fault.Busy, "state directory %s: another blockd uses it", stateDir)
		}
		return nil, err
	}
	return func() { file.Close() }, nil
}

// idle ends a process that is of no use.
type idle struct {
	limit time.Duration
	inUse func() int
	end   func()

	mu    sync.Mutex
	open  int
	timer *time.Timer
	since time.Time
}

func newIdle(limit time.Duration, inUse func() int, end func()) *idle {
	i := &idle{limit: limit, inUse: inUse, end: end, since: time.Now()}
	i.mu.Lock() // look, which may come at once, uses the timer
	defer i.mu.Unlock()
	if limit > 0 {
		i.timer = time.AfterFunc(limit, i.look)
	}
	return i
}

func (i *idle) connections(n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.open, i.since = n, time.Now()
}

func (i *idle) look() {
	i.mu.Lock()
	defer i.mu.Unlock()
	left := i.limit - time.Since(i.since)
	if i.open == 0 && i.inUse() == 0 {
		if left <= 0 {
			i.end()
			return
		}
	} else {
		left = i.limit
	}
	i.timer.Reset(left)
}

func (i *idle) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.timer != nil {
		i.timer.Stop()
	}
}
