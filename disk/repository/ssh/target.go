package ssh

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/command"
)

// OpenTarget implements repository.Writable. fault.WrongState when nobody owns the object. The target ends with its
// connection; what a former one may still be writing is ended first.
func (r *Repository) OpenTarget(ctx context.Context, name string, owner repository.Owner) (repository.Target, repository.Mark, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, repository.Mark{}, err
	}
	ctx, done := r.noting(ctx, "opening", name)
	defer done()
	var t *target
	var err error
	for attempt := 0; ; attempt++ {
		t, err = hand(ctx, r, r.limits.mark, func(l *link) (*target, error) {
			t, err := r.openTarget(ctx, l, name, owner)
			return t, r.object(l, name, err)
		}, func(t *target) {
			r.leave(name)
			_ = t.opened.close()
		})
		if err == nil || attempt > 0 || ctx.Err() != nil || !fault.Is(err, fault.Unavailable) || !r.dropped() {
			break
		}
	}
	if err != nil {
		return nil, repository.Mark{}, err
	}
	if r.plain {
		return &plainTarget{t}, t.mark, nil
	}
	return t, t.mark, nil
}

func (r *Repository) openTarget(ctx context.Context, l *link, name string, owner repository.Owner) (*target, error) {
	if _, err := r.lstat(l, name); err != nil {
		return nil, err
	}
	check := func() (mark, error) {
		m, err := r.readMark(l, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return m, fault.Errorf(fault.WrongState, "is not owned by machine %d on host %s, nor by anybody else", owner.Machine, owner.Host)
		case err == nil && m.Owner != owner:
			return m, m.Busy()
		}
		return m, err
	}
	before, err := check()
	if err != nil {
		return nil, err
	}
	o, err := r.openFile(ctx, l, name, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	// Not while the lock is held: sshd may allow two sessions on a connection, and SFTP is one.
	ours, err := r.identify(ctx, l)
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	// Counted before the mark has our connection's name: or one that is closed just now would take that out again.
	r.mu.Lock()
	r.targets[name]++
	r.mu.Unlock()
	var t *target
	err = r.withLock(ctx, l, name, func(l *link) error {
		m, err := check()
		if err != nil {
			return err
		}
		if m.Generation != before.Generation { // what is open may have been deleted since
			return fault.Errorf(fault.Busy, "was taken again: generation %d is over, it is %d now", before.Generation, m.Generation)
		}
		if m.Session != "" && !sameSession(m.Session, ours) {
			if err := r.endSession(ctx, m.Session); err != nil {
				return err
			}
			if o.info, err = o.file.Stat(); err != nil { // it may have written until then
				return err
			}
		}
		m.Session = ours
		if err := r.writeMark(l, name, m); err != nil {
			return err
		}
		t = &target{repository: r, name: name, opened: o, mark: m.Mark, session: ours, checked: time.Now()}
		t.size.Store(o.info.Size())
		return nil
	})
	if err != nil {
		r.leave(name)
		return nil, errors.Join(err, o.close())
	}
	return t, nil
}

// leave counts a target of the object off, and reports whether it was the last.
func (r *Repository) leave(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.targets[name]--; r.targets[name] > 0 {
		return false
	}
	delete(r.targets, name)
	return true
}

// target implements repository.Target.
type target struct {
	repository *Repository
	name       string
	*opened
	mark    repository.Mark
	session string
	size    atomic.Int64

	mu      sync.Mutex
	checked time.Time // when the mark was last looked at
	lost    error     // why the image is no longer ours
	closed  bool
}

// checkEvery is how long a mark that was seen is believed: a host that comes back from the dead finds out
// within that time that its image was given to another.
const checkEvery = time.Second

func (t *target) Size() int64 { return t.size.Load() }

// Boot implements repository.Booted.
func (t *target) Boot() string {
	boot, _, _ := strings.Cut(t.session, " ")
	return boot
}

// Close takes the connection's name from the mark when it is the last target of the object here: there is nothing to end then.
func (t *target) Close() error {
	r := t.repository
	t.mu.Lock()
	closed := t.closed
	t.closed = true
	t.mu.Unlock()
	if closed {
		return nil
	}
	last := r.leave(t.name)
	return r.on(context.Background(), t.link, r.limits.answer, func() error {
		defer t.opened.close()
		select {
		case <-t.link.conn.Done():
			return nil
		default:
		}
		if !last {
			return nil
		}
		err := r.withLock(context.Background(), t.link, t.name, func(l *link) error {
			r.mu.Lock()
			again := r.targets[t.name] > 0
			r.mu.Unlock()
			if again { // it was opened meanwhile
				return nil
			}
			m, err := r.held(l, t.name, t.mark.Owner, t.mark.Generation)
			if err != nil || m.Session != t.session {
				return nil // another's by now
			}
			m.Session = ""
			return r.writeMark(l, t.name, m)
		})
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		return r.object(t.link, t.name, err)
	})
}

func (t *target) ReadAt(p []byte, offset int64) (int, error) {
	type got struct {
		n   int
		eof bool
	}
	r := t.repository
	answer := make(chan got, 1)
	err := r.on(context.Background(), t.link, r.limits.forBytes(len(p)), func() error {
		var g got
		var err error
		if t.plain != nil {
			g.n, g.eof, err = t.plain.readAt(p, offset, t.size.Load())
		} else {
			g.n, g.eof, err = readAt(t.link, t.file, t.size.Load(), p, offset)
		}
		answer <- g
		return r.object(t.link, t.name, err)
	})
	if err != nil {
		return 0, err
	}
	g := <-answer
	return result(g.n, g.eof, nil)
}

// change runs f on the target's connection, when the image is still the owner's.
func (t *target) change(limit time.Duration, bytes int, f func() error) error {
	r := t.repository
	select {
	case <-t.link.conn.Done():
		return fault.Errorf(fault.Unavailable, "%s: object %s: %w", r.label, t.name, t.link.conn.Err())
	default:
	}
	return r.on(context.Background(), t.link, limit, func() error {
		err := t.fenced()
		if err == nil {
			err = r.full(t.link, f(), bytes)
		}
		return r.object(t.link, t.name, err)
	})
}

// fenced looks from time to time whether the image is still the owner's.
func (t *target) fenced() error {
	t.mu.Lock()
	due := time.Since(t.checked) >= checkEvery
	if due {
		t.checked = time.Now()
	}
	lost := t.lost
	t.mu.Unlock()
	if lost != nil || !due {
		return lost
	}
	_, err := t.repository.held(t.link, t.name, t.mark.Owner, t.mark.Generation)
	if fault.Is(err, fault.Busy) {
		t.mu.Lock()
		t.lost = err
		t.mu.Unlock()
	}
	return err
}

func (t *target) WriteAt(p []byte, offset int64) (int, error) {
	own := bytes.Clone(p) // the caller may use p again when it has left a storage that hangs
	err := t.change(t.repository.limits.forBytes(len(p)), len(p), func() error {
		if t.plain != nil {
			return t.plain.writeAt(own, offset)
		}
		return writeAt(t.link, t.file, own, offset)
	})
	if err != nil {
		return 0, err
	}
	t.grown(offset + int64(len(p)))
	return len(p), nil
}

func (t *target) grown(end int64) {
	for size := t.size.Load(); end > size; size = t.size.Load() {
		if t.size.CompareAndSwap(size, end) {
			return
		}
	}
}

func (t *target) Truncate(size int64) error {
	if have := t.size.Load(); size < have {
		return fault.Errorf(fault.Invalid, "%s: object %s: cannot be cut from %d to %d bytes", t.repository.label, t.name, have, size)
	}
	err := t.change(t.repository.limits.answer, 0, func() error {
		fi, err := t.file.Stat()
		if err != nil || fi.Size() >= size {
			return err
		}
		return t.file.Truncate(size)
	})
	if err == nil {
		t.grown(size)
	}
	return err
}

// cheapZeros is up to how many bytes zeros are sent rather than a program started on the other host.
const cheapZeros = 256 << 10

// Discard implements repository.Target. What lies beyond the end is left out.
func (t *target) Discard(offset, length int64) error {
	length = min(length, t.size.Load()-offset)
	if length <= 0 {
		return nil
	}
	return t.change(t.repository.limits.commit, 0, func() error {
		if t.plain != nil {
			if err := t.plain.punch(offset, length); !fault.Is(err, fault.Unsupported) {
				return err
			}
		} else if length > cheapZeros {
			_, err := t.link.conn.Run(context.Background(), command.Cmd{Name: "fallocate", Args: []string{"--punch-hole",
				"--offset", strconv.FormatInt(offset, 10), "--length", strconv.FormatInt(length, 10), t.repository.file(t.name)}})
			if err == nil {
				return nil
			}
			select {
			case <-t.link.conn.Done():
				return err
			default: // a file system, a program or a login that cannot
			}
		}
		return t.writeZeros(offset, length)
	})
}

func (t *target) writeZeros(offset, length int64) error {
	zeros := make([]byte, min(length, 1<<20))
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if err := writeAt(t.link, t.file, zeros[:n], offset); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	return nil
}

func (t *target) Sync() error {
	var begun atomic.Bool
	err := t.change(t.repository.limits.commit, 0, func() error {
		begun.Store(true)
		return t.link.sync(t.file)
	})
	if err != nil && !begun.Load() {
		return &repository.NotBegun{Err: err}
	}
	return err
}
