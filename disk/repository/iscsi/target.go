package iscsi

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
)

// OpenTarget implements repository.Writable. Whoever else has the image open for writing is cut off; with ATTACH kernel this
// host's device goes for that (fault.Busy when it is in use).
func (r *Repository) OpenTarget(ctx context.Context, name string, owner repository.Owner) (repository.Target, repository.Mark, error) {
	if err := r.check(name); err != nil {
		return nil, repository.Mark{}, err
	}
	v, err := r.lookup(ctx, name)
	if err == nil {
		switch m := v.mark; {
		case !m.taken():
			err = fault.Errorf(fault.WrongState, "is not owned by machine %d on host %s, nor by anybody else", owner.Machine, owner.Host)
		case m.owner != owner:
			err = m.public().Busy()
		}
	}
	if err == nil && r.kernel {
		err = r.detach(ctx, v)
	}
	if err == nil {
		err = r.fence(ctx, v, func(place) bool { return false })
	}
	t := &persistent{repository: r, name: name, volume: v}
	if err == nil {
		t.boot, err = r.boot(ctx)
	}
	if err != nil {
		return nil, repository.Mark{}, r.object(name, err)
	}
	if err := t.open(ctx); err != nil {
		return nil, repository.Mark{}, err
	}
	t.size = v.size
	return t, v.mark.public(), nil
}

// persistent is a persistent image in use.
type persistent struct {
	repository *Repository
	name       string
	boot       string // of the server's kernel: what it had in memory is there while that runs

	mu     sync.RWMutex // held for reading while requests are under way
	volume volume
	disk   *qemublock.Disk
	export export
	closed bool

	little sync.Mutex // for what is below
	size   int64
	lost   error // why it is no longer ours
}

var (
	_ repository.Target  = (*persistent)(nil)
	_ repository.Extents = (*persistent)(nil)
)

// open makes the target and opens it; whoever took the image away before that finds it and removes it, or is found.
func (t *persistent) open(ctx context.Context) error {
	d, e, err := t.repository.open(ctx, t.name, owning, t.volume, false, nil)
	if err != nil {
		return err
	}
	v, err := t.repository.again(ctx, t.volume)
	if err == nil {
		err = possessed(v, t.volume.mark.owner, t.volume.mark.generation)
	}
	if err != nil {
		_ = d.Close()
		return t.repository.object(t.name, errors.Join(err, t.repository.drop(ctx, e)))
	}
	t.disk, t.export = d, e
	return nil
}

func (t *persistent) errorf(class fault.Class, format string, args ...any) error {
	return t.repository.object(t.name, fault.Errorf(class, format, args...))
}

func (t *persistent) state() (size int64, lost error) {
	t.little.Lock()
	defer t.little.Unlock()
	return t.size, t.lost
}

// lose says why nothing works from now on; the first reason stays.
func (t *persistent) lose(err error) error {
	t.little.Lock()
	defer t.little.Unlock()
	if t.lost == nil {
		t.lost = err
	}
	return t.lost
}

// explain looks into an error: whether the image is still ours, whether the pool is full.
func (t *persistent) explain(err error) error {
	if err == nil || errors.Is(err, io.EOF) || fault.Is(err, fault.Invalid) {
		return err
	}
	if lost := t.taken(); lost != nil {
		return lost
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.repository.limit)
	defer cancel()
	return t.repository.spaceOr(ctx, t.volume.Pool, err)
}

// Size is the length in bytes.
func (t *persistent) Size() int64 {
	size, _ := t.state()
	return size
}

// doubtAfter is when a request that has no answer lets us ask whether the image was taken away: a target that is gone does
// not answer.
const doubtAfter = 2 * time.Second

// with does f with the disk.
func (t *persistent) with(f func(*qemublock.Disk) error) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if _, lost := t.state(); lost != nil {
		return lost
	}
	d := t.disk
	var asked sync.WaitGroup
	asked.Add(1)
	doubt := time.AfterFunc(doubtAfter, func() {
		defer asked.Done()
		if t.taken() != nil {
			_ = d.Close() // ends the request
		}
	})
	err := f(d)
	if doubt.Stop() {
		asked.Done()
	}
	asked.Wait()
	return t.explain(err)
}

// taken asks whether the image is still ours: nil, also when that cannot be known.
func (t *persistent) taken() error {
	if _, lost := t.state(); lost != nil {
		return lost
	}
	r := t.repository
	ctx, cancel := context.WithTimeout(context.Background(), r.limit)
	defer cancel()
	v, err := r.again(ctx, volume{Volume: t.volume.Volume})
	switch {
	case fault.Is(err, fault.NotFound):
		return t.lose(t.errorf(fault.Busy, "was deleted"))
	case err != nil:
		return nil
	}
	if err := possessed(v, t.volume.mark.owner, t.volume.mark.generation); err != nil {
		return t.lose(r.object(t.name, err))
	}
	return nil
}

func (t *persistent) ReadAt(p []byte, offset int64) (n int, err error) {
	if offset < 0 {
		return 0, t.errorf(fault.Invalid, "read at %d", offset)
	}
	length := max(0, min(int64(len(p)), t.Size()-offset))
	err = t.with(func(d *qemublock.Disk) (err error) {
		n, err = d.ReadAt(p[:length], offset)
		if length == 0 && errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	})
	if err == nil && length < int64(len(p)) {
		err = io.EOF
	}
	return n, err
}

func (t *persistent) WriteAt(p []byte, offset int64) (n int, err error) {
	end := offset + int64(len(p))
	if offset < 0 || end < offset {
		return 0, t.errorf(fault.Invalid, "%d bytes at %d", len(p), offset)
	}
	if end > t.Size() {
		if err := t.Truncate(end); err != nil && !fault.Is(err, fault.Invalid) { // another one made it longer still
			return 0, err
		}
	}
	err = t.with(func(d *qemublock.Disk) (err error) {
		n, err = d.WriteAt(p, offset)
		return err
	})
	return n, err
}

// Discard implements repository.Target. Zeros are written: the target cannot give space back.
func (t *persistent) Discard(offset, length int64) error {
	if offset < 0 || length < 0 || offset+length < offset {
		return t.errorf(fault.Invalid, "%d bytes at %d", length, offset)
	}
	if length = min(length, t.Size()-offset); length <= 0 {
		return nil
	}
	return t.with(func(d *qemublock.Disk) error { return d.Discard(offset, length) })
}

// NextData implements repository.Extents.
func (t *persistent) NextData(offset int64) (start, end int64, err error) {
	size := t.Size()
	if offset >= size {
		return 0, 0, io.EOF
	}
	err = t.with(func(d *qemublock.Disk) (err error) {
		start, end, err = d.NextData(offset)
		return err
	})
	if err == nil && start >= size {
		err = io.EOF
	}
	return start, min(end, size), err
}

// Sync implements repository.Target. What was acknowledged is in the server's memory at least: when our own way to it broke
// before the target was asked, the server itself makes it durable, unless it was started anew.
func (t *persistent) Sync() error {
	var notBegun *repository.NotBegun
	err := t.with(func(d *qemublock.Disk) error {
		err := d.Sync()
		if !errors.As(err, &notBegun) {
			return err
		}
		return nil
	})
	if err != nil || notBegun == nil {
		return err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.repository
	ctx, cancel := context.WithTimeout(context.Background(), r.limit)
	defer cancel()
	boot, unknown := r.boot(ctx)
	switch {
	case unknown != nil:
		return notBegun
	case boot != t.boot:
		return t.lose(t.errorf(fault.Unavailable, "the storage server was started anew before what it had was durable: %w", notBegun.Err))
	}
	if taken := t.taken(); taken != nil {
		return taken
	}
	v, unknown := r.again(ctx, t.volume)
	if unknown != nil {
		return notBegun
	}
	return r.object(t.name, r.flush(ctx, v))
}

// Truncate implements repository.Target.
func (t *persistent) Truncate(size int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, lost := t.state()
	switch {
	case lost != nil:
		return lost
	case size < now:
		return t.errorf(fault.Invalid, "cannot be cut from %d to %d bytes", now, size)
	case size == now:
		return nil
	case t.closed:
		return t.errorf(fault.Unavailable, "closed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), lvmLimit)
	defer cancel()
	if err := t.grow(ctx, size); err != nil {
		return t.explain(t.repository.object(t.name, err))
	}
	if err := t.setSize(ctx, size); err != nil {
		return t.explain(t.repository.object(t.name, err))
	}
	t.little.Lock()
	t.size = size
	t.little.Unlock()
	return nil
}

// grow makes the volume as long as size, with zeros at its end. When it fails in the middle, the target is of no use any more.
func (t *persistent) grow(ctx context.Context, size int64) error {
	r := t.repository
	old := t.volume.Size
	if size <= old {
		return nil
	}
	if err := r.extendable(ctx, t.volume); err != nil {
		return err
	}
	if err := r.extend(ctx, t.volume, size); err != nil {
		return err
	}
	v, err := r.again(ctx, t.volume)
	if err != nil {
		return err
	}
	if v.Pool == "" {
		if err := r.tools(ctx).Zero(ctx, r.device(v.Name), old, v.Size-old); err != nil {
			return err
		}
	}
	if err := t.disk.Sync(); err != nil {
		return err
	}
	_ = t.disk.Close()
	if err := r.drop(ctx, t.export); err != nil {
		return t.lose(err)
	}
	v.mark = t.volume.mark
	t.volume = v
	if err := t.open(ctx); err != nil {
		return t.lose(err)
	}
	return nil
}

// extendable is an error for what LVM does not make longer while it is in use: a snapshot, and what snapshots stand on.
func (r *Repository) extendable(ctx context.Context, v volume) error {
	if v.Thin {
		return nil
	}
	all, err := r.volumes(ctx)
	if err != nil {
		return err
	}
	if v.Snapshot {
		parent, _ := objectName(v.Origin)
		return fault.Errorf(fault.WrongState, "is a snapshot of %s, and cannot be made longer than %d bytes before it is independent: hayloft image flatten IMAGE", parent, v.Size)
	}
	if err := r.needed(ctx, v, all); err != nil {
		return fault.Errorf(fault.ClassOf(err), "cannot be made longer than %d bytes: %w", v.Size, err)
	}
	return nil
}

func (t *persistent) setSize(ctx context.Context, size int64) error {
	r := t.repository
	for {
		v, err := r.again(ctx, t.volume)
		if err == nil {
			err = possessed(v, t.volume.mark.owner, t.volume.mark.generation)
		}
		if err != nil || v.size >= size {
			return err
		}
		tag := sizeTag + strconv.FormatInt(size, 10)
		if _, err := r.swap(ctx, v, v.mark.tag(), []string{sizeTag + strconv.FormatInt(v.size, 10)}, []string{v.mark.tag(), tag}); err != nil {
			return err
		}
	}
}

// Close takes the target away.
func (t *persistent) Close() error {
	t.mu.RLock()
	err := t.disk.Close() // ends requests under way
	t.mu.RUnlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	_ = t.disk.Close()
	_ = t.repository.drop(context.Background(), t.export) // else the next owner's, or Sweep's
	return err
}
