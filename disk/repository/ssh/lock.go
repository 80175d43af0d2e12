package ssh

import (
	"bufio"
	"context"
	_ "embed" // for the script
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/command"
	"hayloft/internal/remote"
	"hayloft/internal/waiting"
)

//go:embed lock.sh
var lockScript string

const (
	lease     = 60 * time.Second // without a sign of life a lock is let go
	beatEvery = 10 * time.Second
	lockLimit = time.Minute // nobody changes a mark for so long, on storage that is at work to make much durable
	lockPoll  = 50 * time.Millisecond
)

// lock is one or two names locked on the other host, by a shell that lives as long as our connection.
type lock struct {
	process *remote.Process
	limit   time.Duration // for letting go
	now     uint64        // clock of the other host in nanoseconds when it was taken, where an object was looked at
	changed time.Time     // the object's time of change then; zero when there is none
	stop    chan struct{}
	beaten  chan struct{} // closed when the last sign of life is given
}

// lockNames makes us the one who writes to names, until release, or until the lock is lost. part is a file that is
// removed with the lock, and with it folders that are empty then, object one that is looked at, "" for none. fault.Busy when somebody else has one of the names.
func (r *Repository) lockNames(ctx context.Context, part, object string, names ...string) (*lock, error) {
	args := []string{"-c", lockScript, "hayloft-lock", strconv.Itoa(int(lease / time.Second)), r.base, "", ""}
	for i, file := range []string{part, object} {
		if file != "" {
			args[5+i] = r.file(file)
		}
	}
	for _, n := range names {
		args = append(args, r.file(hidden(n, ".lock")))
	}
	p, err := r.host.Start(ctx, command.Cmd{Name: "sh", Args: args})
	if err != nil {
		return nil, err
	}
	said := make(chan string, 1)
	go func() { // ends with the process, whose output is read to its end
		out := bufio.NewReader(p.Stdout)
		line, _ := out.ReadString('\n')
		said <- line
		_, _ = out.WriteTo(discard{})
	}()
	ctx, done := waiting.On(ctx, "the lock of object %s", names[0])
	defer done()
	limit := time.NewTimer(r.limits.answer)
	defer limit.Stop()
	var line string
	select {
	case line = <-said:
	case <-limit.C:
		p.Stdin.Close()
		return nil, fault.Errorf(fault.Unavailable, "cannot be locked: the storage server has said nothing for %v", r.limits.answer)
	case <-ctx.Done():
		p.Stdin.Close()
		return nil, ctx.Err()
	}
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch word {
	case "busy":
		p.Stdin.Close()
		return nil, fault.Errorf(fault.Busy, "is being written by another operation")
	case "locked":
		l := &lock{process: p, limit: r.limits.answer, stop: make(chan struct{}), beaten: make(chan struct{})}
		go l.beat()
		if err := l.parse(rest); err != nil {
			return nil, errors.Join(err, l.release())
		}
		return l, nil
	}
	p.Stdin.Close()
	if err := p.Wait(ctx); err != nil {
		return nil, fmt.Errorf("cannot be locked: %w", err)
	}
	return nil, fault.Errorf(fault.Unsupported, "cannot be locked: the storage server says %q", line)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (l *lock) parse(times string) error {
	if times == "" {
		return nil
	}
	now, changed, _ := strings.Cut(times, " ")
	n, err := strconv.ParseUint(now, 10, 63)
	if err != nil {
		return fault.Errorf(fault.Unsupported, "the storage server's date knows no nanoseconds: %q", now)
	}
	l.now = n
	if changed == "" {
		return nil
	}
	if l.changed, err = time.Parse("2006-01-02 15:04:05 -0700", changed); err != nil { // takes fractions too
		return fault.Errorf(fault.Unsupported, "the storage server's stat gives the time of change as %q", changed)
	}
	return nil
}

// beat shows that we live.
func (l *lock) beat() {
	defer close(l.beaten)
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if _, err := l.process.Stdin.Write([]byte(".")); err != nil {
				return
			}
		case <-l.stop:
			return
		case <-l.process.Done():
			return
		}
	}
}

// lost reports whether somebody else may have the lock by now.
func (l *lock) lost() error {
	select {
	case <-l.process.Done():
		return fault.Errorf(fault.Unavailable, "its lock on the storage server is lost")
	default:
		return nil
	}
}

// release lets go and waits until that is done.
func (l *lock) release() error {
	close(l.stop)
	<-l.beaten
	l.process.Stdin.Close()
	ctx, cancel := context.WithTimeout(context.Background(), l.limit)
	defer cancel()
	return l.process.Wait(ctx)
}

// locked runs f with the object's name locked, after waiting for those who change its mark.
func (r *Repository) locked(ctx context.Context, limit time.Duration, name string, f func(*link) error) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return r.once(ctx, limit, func(l *link) error {
		return r.object(l, name, r.withLock(ctx, l, name, f))
	})
}

func (r *Repository) withLock(ctx context.Context, l *link, name string, f func(*link) error) error {
	limit := time.NewTimer(lockLimit)
	defer limit.Stop()
	for {
		held, err := r.lockNames(ctx, "", "", name)
		if err == nil {
			err := f(l)
			return errors.Join(err, held.release())
		}
		if !fault.Is(err, fault.Busy) {
			if _, gone := l.files.Lstat(path.Dir(r.file(name))); errors.Is(gone, fs.ErrNotExist) {
				return gone
			}
			return err
		}
		poll := time.NewTimer(lockPoll)
		select {
		case <-poll.C:
		case <-limit.C:
			return fault.Errorf(fault.Unavailable, "it has been locked for %v", lockLimit)
		case <-ctx.Done():
			poll.Stop()
			return ctx.Err()
		}
	}
}
