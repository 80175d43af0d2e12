// Package volumelock locks volumes of a local store by name, among the goroutines of a process and all processes of the host.
// The kernel releases what a dead process held, so a lock is never stale.
package volumelock

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// Locks are byte ranges of one file (open file description locks), a byte for each name.
type Locks struct {
	path string

	mu    sync.Mutex
	turns map[string]*turn
}

// turn is a queue for a name in this process: the one who has the token may ask the kernel.
type turn struct {
	token chan struct{}
	users int
}

// New gives the locks that stand on a file, made when missing, in a directory that is made too.
func New(path string) (*Locks, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("locks of volumes: %w", err)
	}
	l := &Locks{path: path, turns: map[string]*turn{}}
	f, err := l.open()
	if err != nil {
		return nil, err
	}
	return l, f.Close()
}

func (l *Locks) open() (*os.File, error) {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locks of volumes: %w", err)
	}
	return f, nil
}

// maxPause between two questions to the kernel, while another process has the lock.
const maxPause = 50 * time.Millisecond

// Lock waits for the lock of a name, in the order of the calls within this process, until ctx ends (fault.Busy).
func (l *Locks) Lock(ctx context.Context, name string) (unlock func(), err error) {
	leave, err := l.enter(ctx, name)
	if err != nil {
		return nil, err
	}
	f, err := l.open()
	if err != nil {
		leave()
		return nil, err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, maxPause) {
		err := l.ask(f, name)
		if err == nil {
			return l.unlocking(f, name, leave), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			_ = f.Close()
			leave()
			return nil, fmt.Errorf("lock %s: %w", l.path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			leave()
			return nil, fault.Errorf(fault.Busy, "volume %q: another process works on it: %w", name, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// TryLock takes the lock when nobody has it.
func (l *Locks) TryLock(name string) (unlock func(), ok bool, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	leave, err := l.enter(ctx, name)
	if err != nil {
		return nil, false, nil // this process has it
	}
	f, err := l.open()
	if err != nil {
		leave()
		return nil, false, err
	}
	if err := l.ask(f, name); err != nil {
		_ = f.Close()
		leave()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("lock %s: %w", l.path, err)
	}
	return l.unlocking(f, name, leave), true, nil
}

// unlocking lets go of the byte, which closing the file alone does not while a program is being started: until that runs, it
// has what this process has open.
func (l *Locks) unlocking(f *os.File, name string, leave func()) func() {
	return sync.OnceFunc(func() {
		_ = l.set(f, name, unix.F_UNLCK)
		_ = f.Close()
		leave()
	})
}

// ask the kernel for the byte of the name.
func (l *Locks) ask(f *os.File, name string) error { return l.set(f, name, unix.F_WRLCK) }

func (l *Locks) set(f *os.File, name string, kind int16) error {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	lock := unix.Flock_t{Type: kind, Whence: 0, Start: int64(h.Sum64() >> 2), Len: 1}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// enter waits for the turn of this call among those of this process.
func (l *Locks) enter(ctx context.Context, name string) (leave func(), err error) {
	l.mu.Lock()
	t := l.turns[name]
	if t == nil {
		t = &turn{token: make(chan struct{}, 1)}
		l.turns[name] = t
	}
	t.users++
	l.mu.Unlock()
	quit := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(l.turns, name)
		}
	}
	select {
	case t.token <- struct{}{}:
		return func() { <-t.token; quit() }, nil
	default:
	}
	select {
	case t.token <- struct{}{}:
		return func() { <-t.token; quit() }, nil
	case <-ctx.Done():
		quit()
		return nil, fault.Errorf(fault.Busy, "volume %q is being worked on: %w", name, ctx.Err())
	}
}
