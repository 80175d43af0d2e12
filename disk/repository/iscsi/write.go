package iscsi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
)

// writer implements repository.Writer and repository.Extents on an unfinished volume. Its target is made when it is first
// needed, and anew when the volume grows.
type writer struct {
	repository *Repository
	name       string
	identity   volume // as it was made
	pool       string // "": thick
	least      int64  // bytes that a clone has
	ctx        context.Context
	cancel     context.CancelFunc
	renewals   sync.WaitGroup
	renewing   sync.Mutex
	written    granules

	mu     sync.RWMutex // held for reading while requests are under way
	volume volume       // its Size is where the target ends
	disk   *qemublock.Disk
	export export
	ended  bool

	little sync.Mutex // for what is below
	lease  lease
	size   int64
	failed error // what was written is not there

	edges sync.Mutex // while a granule is begun
}

var (
	_ repository.Writer  = (*writer)(nil)
	_ repository.Extents = (*writer)(nil)
)

func newWriter(ctx context.Context, r *Repository, name string, v volume) *writer {
	w := &writer{repository: r, name: name, identity: v, volume: v, pool: v.Pool, lease: v.lease}
	w.ctx, w.cancel = context.WithCancel(ctx)
	w.renewals.Go(w.keep)
	return w
}

// keep renews the lease for as long as the writer lives.
func (w *writer) keep() {
	r := w.repository
	ticker := time.NewTicker(r.lease / 5)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-w.ctx.Done():
			return
		}
		now, err := r.now(w.ctx)
		if err != nil {
			continue // the next time
		}
		err = w.renew(w.ctx, lease{now, w.leased().nonce}, nil)
		if fault.Is(err, fault.Busy) {
			w.fail(err)
			return
		}
	}
}

func (w *writer) leased() lease {
	w.little.Lock()
	defer w.little.Unlock()
	return w.lease
}

// renew replaces the lease, and adds tags: fault.Busy when it was lost.
func (w *writer) renew(ctx context.Context, l lease, tags []string) error {
	w.renewing.Lock()
	defer w.renewing.Unlock()
	for {
		before := w.leased()
		after, err := w.repository.swap(ctx, w.identity, before.tag(), nil, append([]string{l.tag()}, tags...))
		if fault.Is(err, fault.NotFound) || err == nil && after.lease.nonce != l.nonce {
			return fault.Errorf(fault.Busy, "was taken away: its writer gave no sign of life")
		}
		if err != nil {
			return err
		}
		w.little.Lock()
		w.lease = after.lease
		w.little.Unlock()
		if after.lease == l {
			return nil
		}
		// A renewal without an answer was one.
	}
}

func (w *writer) fail(err error) {
	w.little.Lock()
	defer w.little.Unlock()
	if w.failed == nil {
		w.failed = err
	}
}

func (w *writer) state() (size int64, failed error) {
	w.little.Lock()
	defer w.little.Unlock()
	return w.size, w.failed
}

func (w *writer) explain(err error) error {
	if err == nil {
		return nil
	}
	if _, failed := w.state(); fault.Is(failed, fault.Busy) {
		err = failed
	}
	return w.repository.object(w.name, w.repository.spaceOr(w.ctx, w.pool, err))
}

const maxStep = 256 << 20

// reach makes sure that the volume is as long as end, and open; it returns with mu held for reading, unless it fails.
func (w *writer) reach(end int64) error {
	for {
		w.mu.RLock()
		if w.disk != nil && end <= w.volume.Size {
			return nil
		}
		w.mu.RUnlock()
		if err := w.prepare(end); err != nil {
			return err
		}
	}
}

func (w *writer) prepare(end int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.grow(end, min(w.volume.Size, maxStep)); err != nil || w.disk != nil {
		return err
	}
	d, e, err := w.repository.open(w.ctx, w.name, writing, w.volume, false, nil)
	if err != nil {
		return err
	}
	w.disk, w.export = d, e
	return nil
}

// grow makes the volume as long as end and, when it must grow for that, by more at least. The caller holds mu.
func (w *writer) grow(end, more int64) error {
	r := w.repository
	switch {
	case w.ended:
		return fault.Errorf(fault.WrongState, "writer has ended")
	case end <= w.volume.Size:
		return nil
	}
	if err := w.close(true); err != nil {
		return err
	}
	if w.volume.Snapshot {
		return w.detach(end)
	}
	err := r.extend(w.ctx, w.volume, max(end, w.volume.Size+more))
	if fault.Is(err, fault.OutOfSpace) && end < w.volume.Size+more {
		err = r.extend(w.ctx, w.volume, end)
	}
	if err != nil {
		return err
	}
	v, err := r.again(w.ctx, w.volume)
	if err != nil {
		return err
	}
	w.volume.Size = v.Size
	return nil
}

// close ends the use of the target; the caller holds mu.
func (w *writer) close(sync bool) error {
	if w.disk == nil {
		return nil
	}
	if sync {
		if err := w.disk.Sync(); err != nil {
			return err
		}
	}
	_ = w.disk.Close()
	w.disk = nil
	return w.repository.drop(w.ctx, w.export)
}

func (w *writer) WriteAt(p []byte, offset int64) (int, error) {
	switch _, failed := w.state(); {
	case offset < 0:
		return 0, w.repository.object(w.name, fault.Errorf(fault.Invalid, "write at %d", offset))
	case failed != nil:
		return 0, w.repository.object(w.name, failed)
	case len(p) == 0:
		return 0, nil
	}
	end := offset + int64(len(p))
	if err := w.reach(end); err != nil {
		return 0, w.explain(err)
	}
	err := w.put(p, offset)
	w.mu.RUnlock()
	if err != nil {
		w.fail(err)
		return 0, w.explain(err)
	}
	w.little.Lock()
	w.size = max(w.size, end)
	w.little.Unlock()
	return len(p), nil
}

// put writes. Granules of a thick volume are begun whole. The caller holds mu for reading.
func (w *writer) put(p []byte, offset int64) (err error) {
	if p, offset, err = w.edge(p, offset); err != nil || len(p) == 0 {
		return err
	}
	_, err = w.disk.WriteAt(p, offset)
	return err
}

// edge writes what covers a part of a granule that was not begun, with zeros around it, and gives what is left to write,
// which counts as written from now on: another one who writes to a part of it writes just that.
func (w *writer) edge(p []byte, offset int64) ([]byte, int64, error) {
	w.edges.Lock()
	defer w.edges.Unlock()
	if head := offset % granule; w.pool == "" && head != 0 && !w.written.has(offset/granule) {
		n := min(int64(len(p)), granule-head)
		if err := w.begin(p[:n], offset); err != nil {
			return nil, 0, err
		}
		p, offset = p[n:], offset+n
	}
	end := offset + int64(len(p))
	if tail := end % granule; w.pool == "" && len(p) > 0 && tail != 0 && !w.written.has(end/granule) {
		if err := w.begin(p[int64(len(p))-tail:], end-tail); err != nil {
			return nil, 0, err
		}
		p = p[:int64(len(p))-tail]
		end -= tail
	}
	if len(p) > 0 {
		w.written.set(offset/granule, (end+granule-1)/granule)
	}
	return p, offset, nil
}

// begin writes a whole granule of which p is a part, the rest zeros.
func (w *writer) begin(p []byte, offset int64) error {
	first := offset / granule
	whole := make([]byte, granule)
	copy(whole[offset%granule:], p)
	if _, err := w.disk.WriteAt(whole, first*granule); err != nil {
		return err
	}
	w.written.set(first, first+1)
	return nil
}

func (w *writer) ReadAt(p []byte, offset int64) (int, error) {
	size, failed := w.state()
	if offset < 0 || failed != nil {
		return 0, w.repository.object(w.name, errors.Join(failed, fault.Errorf(fault.Invalid, "read at %d", offset)))
	}
	n := max(0, min(int64(len(p)), size-offset))
	for done := int64(0); done < n; {
		part := w.written.next(offset+done, offset+n)
		to := p[done : done+part.end-part.start]
		clear(to)
		if part.written {
			if err := w.reach(part.end); err != nil {
				return int(done), w.explain(err)
			}
			_, err := w.disk.ReadAt(to, part.start)
			w.mu.RUnlock()
			if err != nil {
				return int(done), w.explain(err)
			}
		}
		done += part.end - part.start
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// NextData implements repository.Extents: data is what was written, or cloned.
func (w *writer) NextData(offset int64) (start, end int64, err error) {
	size, _ := w.state()
	for offset < size {
		part := w.written.next(offset, size)
		if part.written {
			return part.start, part.end, nil
		}
		offset = part.end
	}
	return 0, 0, io.EOF
}

func (w *writer) SetSize(size int64) error {
	now, failed := w.state()
	switch {
	case failed != nil:
		return w.repository.object(w.name, failed)
	case size < w.least:
		return w.repository.object(w.name, fault.Errorf(fault.Invalid, "cannot be cut from %d to %d bytes", w.least, size))
	case size < now:
		if err := w.zero(size, now); err != nil {
			w.fail(err)
			return w.explain(err)
		}
	default:
		w.mu.Lock()
		err := w.grow(size, 0)
		w.mu.Unlock()
		if err != nil {
			return w.explain(err)
		}
	}
	w.little.Lock()
	w.size = size
	w.little.Unlock()
	return nil
}

// zero makes what was written from start to end zeros.
func (w *writer) zero(start, end int64) error {
	for offset := start; offset < end; {
		part := w.written.next(offset, end)
		if offset = part.end; !part.written {
			continue
		}
		if err := w.reach(part.end); err != nil {
			return err
		}
		err := w.disk.Discard(part.start, part.end-part.start)
		w.mu.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}
