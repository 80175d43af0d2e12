package rbd

import (
	"context"
	"errors"
	"io"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
	"hayloft/internal/undo"
)

// Create implements repository.Repository.
func (r *Repository) Create(ctx context.Context, name string) (repository.Writer, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	if err := r.free(ctx, name); err != nil {
		return nil, r.object(name, err)
	}
	w, err := r.create(ctx, name, func() error {
		_, err := r.rbd(ctx, "create", "--image", partOf(name), "--size", "0", "--image-feature", features)
		return err
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// create has make make the unfinished image of a name that is free, and opens it. Errors name the object.
func (r *Repository) create(ctx context.Context, name string, make func() error) (_ *writer, err error) {
	err = make()
	if fault.Is(err, fault.Exists) {
		if err = r.drop(ctx, partOf(name)); err == nil { // of a writer that died
			err = make()
		}
		if fault.Is(err, fault.Exists) {
			err = fault.Errorf(fault.Busy, "is being written by another operation")
		}
	}
	if err != nil {
		return nil, r.object(name, err)
	}
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Run()) }()
	last := context.WithoutCancel(ctx)
	u.Push(func() error { return r.drop(last, partOf(name)) })
	i, err := r.info(ctx, partOf(name))
	if err == nil {
		err = r.register(ctx, i)
	}
	if err != nil {
		return nil, r.object(name, err)
	}
	d, err := r.open(ctx, name, i, true)
	if err != nil {
		return nil, err
	}
	u.Keep()
	return &writer{repository: r, name: name, image: i, disk: d, size: i.Size, least: i.Size}, nil
}

// free refuses when the name is taken.
func (r *Repository) free(ctx context.Context, name string) error {
	_, err := r.lookup(ctx, name)
	switch {
	case err == nil:
		return fault.Errorf(fault.Exists, "exists")
	case fault.Is(err, fault.NotFound):
		return nil
	}
	return err
}

// writer implements repository.Writer and repository.Extents on an unfinished image. While it lives it watches the
// image, which keeps others from removing it.
type writer struct {
	repository *Repository
	name       string
	image      rbdImage
	least      int64 // bytes that a clone has from its parent

	mu    sync.RWMutex
	disk  *qemublock.Disk
	size  int64 // what was written or set; the image may be longer until Commit
	ended bool
}

// step of growing: each costs a new export.
const step = 16 << 20

// reach makes sure that the image is as long as end.
func (w *writer) reach(end int64) error {
	w.mu.RLock()
	enough := end <= w.size
	w.mu.RUnlock()
	if enough {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if end > w.disk.Size() {
		if err := w.disk.Truncate(max(end, min(2*w.disk.Size(), end+1<<30), step)); err != nil {
			return err
		}
	}
	w.size = max(w.size, end)
	return nil
}

func (w *writer) explain(err error) error {
	if err == nil {
		return nil
	}
	return w.repository.spaceOr(context.Background(), w.name, err)
}

func (w *writer) WriteAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, w.repository.object(w.name, fault.Errorf(fault.Invalid, "write at %d", offset))
	}
	if err := w.reach(offset + int64(len(p))); err != nil {
		return 0, w.explain(err)
	}
	n, err := w.disk.WriteAt(p, offset)
	return n, w.explain(err)
}

func (w *writer) length() int64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.size
}

func (w *writer) ReadAt(p []byte, offset int64) (int, error) {
	rest := max(0, w.length()-offset)
	if int64(len(p)) <= rest {
		return w.disk.ReadAt(p, offset)
	}
	n, err := w.disk.ReadAt(p[:rest], offset)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// NextData implements repository.Extents.
func (w *writer) NextData(offset int64) (start, end int64, err error) {
	size := w.length()
	start, end, err = w.disk.NextData(offset)
	if err == nil && start >= size {
		return 0, 0, io.EOF
	}
	return start, min(end, size), err
}

func (w *writer) SetSize(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case size < w.least, size < 0:
		return w.repository.object(w.name, fault.Errorf(fault.Invalid, "cannot be cut from %d to %d bytes", w.least, size))
	case size < w.size:
		if err := w.disk.Discard(size, w.disk.Size()-size); err != nil {
			return w.explain(err)
		}
	case size > w.disk.Size():
		if err := w.disk.Truncate(size); err != nil {
			return w.explain(err)
		}
	}
	w.size = size
	return nil
}

// Commit implements repository.Writer. The image is renamed while it is still watched.
func (w *writer) Commit(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return w.repository.object(w.name, fault.Errorf(fault.WrongState, "writer has ended"))
	}
	if err := ctx.Err(); err != nil {
		return w.repository.object(w.name, err)
	}
	if err := errors.Join(w.disk.Sync(), w.disk.Cut(w.size)); err != nil {
		return w.explain(err)
	}
	r := w.repository
	_, err := r.rbd(ctx, append([]string{"rename", "--image", partOf(w.name)}, r.to(encode(w.name))...)...)
	if fault.Is(err, fault.NotFound) {
		err = fault.Errorf(fault.Busy, "was removed while it was written: %w", err)
	}
	if err != nil {
		return r.object(w.name, err)
	}
	w.ended = true
	return w.disk.Close()
}

// Abort implements repository.Writer.
func (w *writer) Abort() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return nil
	}
	w.ended = true
	_ = w.disk.Close()
	ctx := context.Background()
	err := w.repository.drop(ctx, partOf(w.name))
	if err == nil { // a Commit without answer may have been one
		if i, lost := w.repository.info(ctx, encode(w.name)); lost == nil && i.ID == w.image.ID {
			err = w.repository.remove(ctx, i)
		}
	}
	return w.repository.object(w.name, err)
}
