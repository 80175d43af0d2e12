package volume

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/internal/undo"
)

// offline is the whole image here. dirty says which chunks changed since they were as in the source; its bits are
// set before the chunk is changed. The digests in origin say what the source has: a chunk with a digest of zeros is
// copied back whatever it holds.
type offline struct {
	v      *volume
	dirty  *bitmap
	origin storage.File
	ready  atomic.Bool // all is here
	syncs  groupSync
	// doubt: what changed may be in memory only, for good: a sync failed since the last that did not, or may have before
	// a restart. Guarded by the turn of syncs, and unsure, which is the same for what is being loaded, by that of loading.
	doubt, unsure bool

	// gate: changes hold it for reading; settle shuts it for moments, to know which chunks changed under its hands.
	gate     sync.RWMutex
	settling bool
	changed  []atomic.Uint64

	loading, settles, marking turn

	marked atomic.Bool // the source's mark is set, or somebody sees to it
	fenced atomic.Pointer[error]
}

func openOffline(v *volume, u *undo.Stack) (*offline, error) {
	o := &offline{v: v, syncs: newGroupSync(), loading: newTurn(), settles: newTurn(), marking: newTurn()}
	file, _, err := openOrCreate(v.dir, dirtyFile, u)
	if err != nil {
		return nil, err
	}
	if o.origin, _, err = openOrCreate(v.dir, originFile, u); err != nil {
		return nil, err
	}
	o.dirty = newBitmap(file, v.state.Generation, chunksOf(v.size))
	o.changed = make([]atomic.Uint64, len(o.dirty.words))
	switch {
	case !v.state.Complete:
		err = o.dirty.writeAll()
	case v.believed:
		if _, err = o.dirty.load(true); err == nil && v.unsure {
			err = o.dirty.writeAll()
		}
	default:
		// What was written and not synced may be lost, its bit as well: all chunks are to be compared.
		err = o.dirty.set(0, o.dirty.size)
	}
	if err != nil {
		return nil, fmt.Errorf("dirty: %w", err)
	}
	o.doubt, o.unsure = v.unsure, v.unsure
	o.ready.Store(v.state.Complete)
	o.marked.Store(v.state.Marked)
	return o, nil
}

// isUnsure reports whether chunks that a load brought here may be in memory only, for good.
func (o *offline) isUnsure() bool { return !o.ready.Load() && o.unsure }

func (o *offline) notReady() error {
	return fault.Errorf(fault.WrongState, "the image is not all here yet")
}

func (o *offline) tryRead(p []byte, offset int64) bool {
	if !o.ready.Load() {
		return false
	}
	n, _ := o.v.data.ReadAt(p, offset)
	return n == len(p)
}

func (o *offline) read(p []byte, offset int64) error {
	if !o.ready.Load() {
		return o.notReady()
	}
	n, err := o.v.data.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("data: %w", err)
}

func (o *offline) tryWrite(p []byte, offset int64) (done bool, err error) {
	if !o.ready.Load() || !o.marked.Load() || o.fenced.Load() != nil {
		return false, nil
	}
	return o.put(writeOf(p, offset))
}

// put changes the data; done is false when the mark has to be set before.
func (o *offline) put(c change) (done bool, err error) {
	o.gate.RLock()
	defer o.gate.RUnlock()
	if !o.marked.Load() {
		return false, nil
	}
	first, last := chunksIn(c.offset, c.length)
	if o.settling {
		for i := first; i < last; {
			mask, next := wordMask(i, last)
			o.changed[i/64].Or(mask)
			i = next
		}
	}
	if !o.dirty.filed(first, last) {
		if err := o.dirty.set(first, last); err != nil {
			return true, fmt.Errorf("dirty: %w", err)
		}
	}
	if c.p != nil || !c.noHole {
		err = o.v.putChange(c, c.offset, c.end())
	}
	for at := c.offset; c.p == nil && c.noHole && at < c.end() && err == nil; at += int64(len(zeros)) {
		_, err = o.v.data.WriteAt(zeros[:min(int64(len(zeros)), c.end()-at)], at)
	}
	if err != nil {
		return true, fmt.Errorf("data: %w", err)
	}
	return true, nil
}

func (o *offline) change(ctx context.Context, c change, fua bool) error {
	if !o.ready.Load() {
		return o.notReady()
	}
	for {
		if fenced := o.fenced.Load(); fenced != nil {
			return *fenced
		}
		done, err := o.put(c)
		if err != nil {
			return err
		}
		if done {
			break
		}
		if err := o.mark(ctx); err != nil {
			return err
		}
	}
	if fua {
		return o.flush(ctx)
	}
	return nil
}

// flush also sees to the mark: after a loss of power what is here may differ from the source without a write.
func (o *offline) flush(ctx context.Context) error {
	if !o.marked.Load() && o.dirty.count.Load() > 0 {
		if err := o.mark(ctx); err != nil {
			return err
		}
	}
	return o.syncs.do(func() error {
		if o.doubt {
			if err := o.rewrite(); err != nil {
				return err
			}
		}
		if err := o.v.data.Sync(); err != nil {
			o.doubt = true
			return fmt.Errorf("data: %w", err)
		}
		o.doubt = false
		return nil
	})
}

// rewrite writes all changed chunks once more: after a sync that failed the system has some of them in memory only, and
// the next sync does not bring them to the disk.
func (o *offline) rewrite() error {
	content := make([]byte, chunkSize)
	again := func(c int64) error {
		o.gate.Lock()
		defer o.gate.Unlock()
		start, end := o.v.chunkRange(c)
		if err := o.read(content[:end-start], start); err != nil {
			return err
		}
		if _, err := o.v.data.WriteAt(content[:end-start], start); err != nil {
			return fmt.Errorf("data: %w", err)
		}
		return nil
	}
	for c := o.dirty.next(0); c < o.dirty.size; c = o.dirty.next(c + 1) {
		if err := again(c); err != nil {
			return err
		}
	}
	return nil
}

// mark has the source say that this host has writes which the source has not. After Load it is set, so that nothing
// needs the repository any more until Settle has cleared it.
func (o *offline) mark(ctx context.Context) error {
	if err := o.marking.take(ctx); err != nil {
		return err
	}
	defer o.marking.give()
	if o.marked.Load() {
		return nil
	}
	if err := o.v.patient(ctx, func() error { return o.v.remote.Undrained(ctx, true) }); err != nil {
		o.fence(err)
		return fmt.Errorf("mark: %w", err)
	}
	if err := o.v.changeState(func(s *state) { s.Marked = true }); err != nil {
		return err
	}
	o.marked.Store(true)
	return nil
}

func (o *offline) fence(err error) {
	if fault.Is(err, fault.Busy) {
		o.fenced.CompareAndSwap(nil, &err)
	}
}

func (o *offline) status(s *cache.VolumeStatus) {
	s.Undrained = o.dirty.count.Load() * chunkSize
	if fenced := o.fenced.Load(); fenced != nil {
		s.Error = (*fenced).Error()
	}
}

func (o *offline) shut() error {
	if o.doubt {
		if err := o.rewrite(); err != nil {
			return err
		}
	}
	if err := o.dirty.sync(); err != nil {
		return fmt.Errorf("dirty: %w", err)
	}
	if err := o.origin.Sync(); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	return nil
}
