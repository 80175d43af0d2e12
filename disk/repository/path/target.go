package path

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// target implements repository.Target and repository.Extents.
type target struct {
	repository *Repository
	name       string
	file       *os.File
	mark       repository.Mark
	size       atomic.Int64

	mu      sync.Mutex
	checked time.Time // when the mark was last looked at
	lost    error     // why the image is no longer ours
}

// checkEvery is how long a mark that was seen is believed: a host that comes back from the dead finds out
// within that time that its image was given to another.
const checkEvery = time.Second

func newTarget(r *Repository, name string, file *os.File, size int64, m repository.Mark) *target {
	t := &target{repository: r, name: name, file: file, mark: m, checked: time.Now()}
	t.size.Store(size)
	return t
}

func (t *target) Size() int64  { return t.size.Load() }
func (t *target) Close() error { return t.file.Close() }

func (t *target) ReadAt(p []byte, offset int64) (int, error) {
	return readAt(t.repository, t.name, t.file, p, offset)
}

// NextData implements repository.Extents.
func (t *target) NextData(offset int64) (start, end int64, err error) {
	return nextData(context.Background(), t.repository, t.name, t.file, t.size.Load(), offset)
}

// hangs counts the changes of each object whose callers left because the storage does not answer.
type hangs struct {
	mu sync.Mutex
	of map[string]int
}

func (h *hangs) count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.of[name]
}

// add is called with mu held.
func (h *hangs) add(name string, n int) {
	if h.of == nil {
		h.of = map[string]int{}
	}
	if h.of[name] += n; h.of[name] == 0 {
		delete(h.of, name)
	}
}

// change runs f in a worker. One that hangs may still happen, much later, and over what was written after it; so
// until it came back there are no others, also not by a target that is opened anew.
func (t *target) change(limit time.Duration, f func() error) error {
	h := &t.repository.hanging
	if n := h.count(t.name); n > 0 {
		return fault.Errorf(fault.Unavailable, "%s: object %s: storage does not answer, %d changes hang", t.repository.label, t.name, n)
	}
	var begun, ended, left bool // under the lock of h
	g := *t.repository.gate
	g.limit = limit
	err := g.run(context.Background(), func() error {
		h.mu.Lock()
		begun = true
		gone := left
		h.mu.Unlock()
		if gone {
			return nil
		}
		defer func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			ended = true
			if left {
				h.add(t.name, -1)
			}
		}()
		if err := t.fenced(); err != nil {
			return t.repository.object(t.name, err)
		}
		return t.repository.object(t.name, f())
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	left = true
	if begun && !ended {
		h.add(t.name, 1)
	}
	return err
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
	root, err := t.repository.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = held(root, t.name, t.mark.Owner, t.mark.Generation)
	if fault.Is(err, fault.Busy) {
		t.mu.Lock()
		t.lost = err
		t.mu.Unlock()
	}
	return err
}

func (t *target) WriteAt(p []byte, offset int64) (int, error) {
	own := bytes.Clone(p) // the caller may use p again when it has left a storage that hangs
	err := t.change(defaultLimit, func() error {
		_, err := t.file.WriteAt(own, offset)
		return err
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
	err := t.change(defaultLimit, func() error {
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

// Discard implements repository.Target. What lies beyond the end is left out.
func (t *target) Discard(offset, length int64) error {
	length = min(length, t.size.Load()-offset)
	if length <= 0 {
		return nil
	}
	return t.change(commitLimit, func() error {
		err := withFD(t.file, func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
		})
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return writeZeros(t.file, offset, length)
		}
		return err
	})
}

func writeZeros(file *os.File, offset, length int64) error {
	zeros := make([]byte, min(length, 1<<20))
	for length > 0 {
		n, err := file.WriteAt(zeros[:min(length, int64(len(zeros)))], offset)
		if err != nil {
			return err
		}
		offset, length = offset+int64(n), length-int64(n)
	}
	return nil
}

func (t *target) Sync() error {
	var begun atomic.Bool
	err := t.change(commitLimit, func() error {
		begun.Store(true)
		return withFD(t.file, unix.Fdatasync)
	})
	if err != nil && !begun.Load() {
		return &repository.NotBegun{Err: err}
	}
	return err
}
