package s3

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

const (
	uploaders  = 4 // parts of one object on their way at a time
	abortLimit = time.Minute
)

// writer implements repository.Writer and image.Extents.
type writer struct {
	repository *Repository
	name       string
	id         string // in the object's metadata
	parent     *source
	layout     layout
	spool      *os.File

	// of the parts that go out before Commit
	ctx    context.Context
	cancel context.CancelFunc
	going  sync.WaitGroup
	up     *upload

	ending sync.Mutex // held by Commit and Abort
	ended  bool

	mu      sync.Mutex
	size    int64
	written spans
	changes map[int]int // of each part so far
	pending []piece     // parts that are whole and wait for an uploader
	active  int
	closed  bool // no more parts before Commit
}

// piece is a part and its range.
type piece struct {
	part  int
	whole span
}

// Create implements repository.Repository.
func (r *Repository) Create(ctx context.Context, name string) (repository.Writer, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	w, err := r.create(ctx, name, nil)
	if err != nil {
		return nil, r.object(name, err)
	}
	return w, nil
}

func (r *Repository) create(ctx context.Context, name string, parent *source) (*writer, error) {
	r.mu.Lock()
	busy := r.writing[name]
	r.writing[name] = true
	r.mu.Unlock()
	if busy {
		return nil, fault.Errorf(fault.Busy, "is being written by another operation")
	}
	w, err := r.begin(ctx, name, parent)
	if err != nil {
		r.release(name)
		return nil, err
	}
	return w, nil
}

func (r *Repository) begin(ctx context.Context, name string, parent *source) (*writer, error) {
	if err := r.free(ctx, name); err != nil {
		return nil, err
	}
	spool, err := openSpool(r.spool)
	if err != nil {
		return nil, err
	}
	w := &writer{repository: r, name: name, id: rand.Text(), parent: parent, spool: spool, changes: map[int]int{}}
	if parent != nil {
		w.size = parent.size
		w.layout = layoutOf(parent.size)
	}
	w.up = newUpload(w)
	w.ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return w, nil
}

func (r *Repository) release(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.writing, name)
}

// free says fault.Exists when there is an object.
func (r *Repository) free(ctx context.Context, name string) error {
	switch _, err := r.look(ctx, r.key(name)); {
	case err == nil:
		return fault.Errorf(fault.Exists, "exists")
	case fault.Is(err, fault.NotFound):
		return nil
	default:
		return err
	}
}

// openSpool makes a file without a name: it is gone when it is closed, and when this process dies.
func openSpool(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		if f, err = os.CreateTemp(dir, "hayloft-s3-"); err == nil {
			err = os.Remove(f.Name())
		}
	}
	if err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "SPOOL_DIR: %w", err)
	}
	return f, nil
}

func (w *writer) WriteAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset > math.MaxInt64-int64(len(p)) {
		return 0, w.repository.object(w.name, fault.Errorf(fault.Invalid, "offset %d", offset))
	}
	n, err := w.spool.WriteAt(p, offset)
	if err != nil {
		return n, w.repository.object(w.name, fault.Errorf(fault.ClassOf(err), "SPOOL_DIR %s: %w", w.repository.spool, err))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := span{offset, offset + int64(n)}
	w.size = max(w.size, r.end)
	var short []piece // parts of it that were not whole before
	for at := r.start; at < r.end; {
		part, whole := w.layout.at(at)
		w.changes[part]++
		if !w.written.covers(whole) {
			short = append(short, piece{part, whole})
		}
		at = whole.end
	}
	w.written = w.written.add(r)
	for _, p := range short { // changes to what went out already are for Commit
		if w.written.covers(p.whole) {
			w.pending = append(w.pending, p)
		}
	}
	w.pump()
	return n, nil
}

// pump starts uploaders for parts that wait. It is called with mu held. What fails here is done again by Commit.
func (w *writer) pump() {
	for !w.closed && w.active < uploaders && len(w.pending) > 0 {
		next := w.pending[0]
		w.pending = w.pending[1:]
		if next.whole.end > w.size { // cut meanwhile
			continue
		}
		version := w.changes[next.part]
		w.active++
		w.going.Go(func() {
			_ = w.up.early(w.ctx, next.part, next.whole, version)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.active--
			w.pump()
		})
	}
}

// ReadAt gives what was written over what the parent has; the rest is zeros.
func (w *writer) ReadAt(p []byte, offset int64) (int, error) {
	w.mu.Lock()
	size := w.size
	asked := span{offset, min(offset+int64(len(p)), size)}
	var gaps []span
	if offset >= 0 && offset < size {
		gaps = w.written.gaps(asked)
	}
	w.mu.Unlock()
	switch {
	case offset < 0:
		return 0, w.repository.object(w.name, fault.Errorf(fault.Invalid, "offset %d", offset))
	case offset >= size:
		return 0, io.EOF
	}
	n := int(asked.end - asked.start)
	if k, err := w.spool.ReadAt(p[:n], offset); err == io.EOF {
		clear(p[k:n]) // it is sparse, and not longer than what was written
	} else if err != nil {
		return 0, w.repository.object(w.name, err)
	}
	for _, g := range gaps {
		if err := w.inherit(w.ctx, p[g.start-offset:g.end-offset], g.start); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// inherit fills p with what the parent has at offset.
func (w *writer) inherit(ctx context.Context, p []byte, offset int64) error {
	clear(p)
	if w.parent == nil || offset >= w.parent.size {
		return nil
	}
	_, err := w.parent.readAt(ctx, p[:min(int64(len(p)), w.parent.size-offset)], offset)
	return err
}

// NextData implements image.Extents.
func (w *writer) NextData(offset int64) (start, end int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.written
	if w.parent != nil { // which does not say where it has holes
		all = append(spans(nil), all...).add(span{0, w.parent.size})
	}
	n, ok := all.next(offset)
	if !ok || n.start >= w.size {
		return 0, 0, io.EOF
	}
	return n.start, min(n.end, w.size), nil
}

func (w *writer) SetSize(size int64) error {
	if w.parent != nil && size < w.parent.size {
		return w.repository.object(w.name, fault.Errorf(fault.Invalid, "is a clone and cannot be cut from %d to %d bytes", w.parent.size, size))
	}
	if size < 0 {
		return w.repository.object(w.name, fault.Errorf(fault.Invalid, "size %d", size))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if size < w.size {
		if err := w.spool.Truncate(size); err != nil {
			return w.repository.object(w.name, fmt.Errorf("SPOOL_DIR %s: %w", w.repository.spool, err))
		}
		w.written = w.written.cut(size)
		first, _ := w.layout.at(size)
		for part := range w.changes {
			if part >= first {
				w.changes[part]++
			}
		}
	}
	w.size = size
	return nil
}

// settle lets the parts under way come to their end and begins no more.
func (w *writer) settle() {
	w.mu.Lock()
	w.closed, w.pending = true, nil
	w.mu.Unlock()
	w.going.Wait()
}

// Commit implements repository.Writer.
func (w *writer) Commit(ctx context.Context) error {
	w.ending.Lock()
	defer w.ending.Unlock()
	if w.ended {
		return w.repository.object(w.name, fault.Errorf(fault.WrongState, "writer has ended"))
	}
	if err := ctx.Err(); err != nil {
		return w.repository.object(w.name, err)
	}
	w.settle()
	if err := w.up.finish(ctx); err != nil {
		return w.repository.object(w.name, err)
	}
	return w.end()
}

// Abort implements repository.Writer.
func (w *writer) Abort() error {
	w.ending.Lock()
	defer w.ending.Unlock()
	if w.ended {
		return nil
	}
	w.cancel()
	w.settle()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), abortLimit)
	defer cancel()
	return errors.Join(w.repository.object(w.name, w.up.drop(ctx)), w.end())
}

func (w *writer) end() error {
	w.ended = true
	w.cancel()
	w.repository.release(w.name)
	return w.spool.Close()
}
