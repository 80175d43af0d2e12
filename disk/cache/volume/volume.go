// Package volume is one machine's persistent image on its host: an export.Device over a repository's Target, behind a
// cache in one of the modes AROUND, THRU, BACK and OFFLINE. What it keeps, and in which order, is in DESIGN.md,
// "Invariants of the cache"; the files are listed in state.go.
//
// What is cached is a copy of the source: a chunk's bit is on file only while the chunk is that copy. Nothing of the
// cache is synced while it is in use; after a power cut, which the boot identity tells, all of it is dropped. Only
// BACK's log and what OFFLINE promised at a FLUSH are durable by themselves.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/export"
	"hayloft/disk/repository"
)

const (
	chunkSize = 64 << 10
	maxSize   = 1 << 50
)

func chunksOf(size int64) int64 { return (size + chunkSize - 1) / chunkSize }

// chunksIn is the chunks [first, last) that a range touches.
func chunksIn(offset, length int64) (first, last int64) {
	return offset / chunkSize, chunksOf(offset + length)
}

// chunkRange is where a chunk is.
func (v *volume) chunkRange(chunk int64) (start, end int64) {
	return chunk * chunkSize, min((chunk+1)*chunkSize, v.size)
}

type volume struct {
	name     string
	dir      storage.Dir
	size     int64
	mode     cache.Mode
	patience time.Duration
	log      *slog.Logger

	remote      remote
	sourceSyncs groupSync
	lateSync    atomic.Pointer[error]
	lostSyncs   atomic.Uint64 // that failed
	data        storage.File
	present     *bitmap
	residents   residents
	ranges      ranges
	flights     flights
	writers     writers
	back        *backlog // BACK
	offline     *offline // OFFLINE

	stateMu  sync.Mutex
	state    state
	believed bool // what was not synced before this Open

	life context.Context // until Close
	stop context.CancelFunc

	closeMu sync.Mutex // of enter against Close
	quit    atomic.Bool
	work    sync.WaitGroup

	buffers      sync.Pool // of *[]byte
	troubled     atomic.Bool
	hits, misses atomic.Int64
}

var (
	_ cache.Volume = (*volume)(nil)
	_ export.Quick = (*volume)(nil)
)

func (v *volume) Size() int64    { return v.size }
func (v *volume) ReadOnly() bool { return false }

// enter begins work that Close waits for; false after Close.
func (v *volume) enter() bool {
	v.closeMu.Lock()
	defer v.closeMu.Unlock()
	if v.quit.Load() {
		return false
	}
	v.work.Add(1)
	return true
}

func (v *volume) leave() { v.work.Done() }

// check refuses what lies outside.
func (v *volume) check(offset, length int64) error {
	if offset < 0 || length < 0 || offset > v.size-length {
		return fault.Errorf(fault.Invalid, "%d bytes at byte %d of %d", length, offset, v.size)
	}
	return nil
}

// do runs one operation of a Device: named errors, nothing after Close.
func (v *volume) do(what string, offset, length int64, f func() error) error {
	if !v.enter() {
		return v.closed()
	}
	defer v.leave()
	err := v.check(offset, length)
	if err == nil && length > 0 {
		err = f()
	}
	if err == nil {
		return nil
	}
	if v.life.Err() != nil {
		return v.closed()
	}
	if errors.Is(err, context.Canceled) {
		err = fault.As(fault.Unavailable, err)
	}
	return fmt.Errorf("volume of %s: %s at byte %d: %w", v.name, what, offset, err)
}

// ReadAt implements export.Device.
func (v *volume) ReadAt(ctx context.Context, p []byte, offset int64) error {
	if done, err := v.TryReadAt(p, offset); done {
		return err
	}
	return v.do("read", offset, int64(len(p)), func() error {
		switch v.mode {
		case cache.Offline:
			return v.offline.read(p, offset)
		case cache.Back:
			return v.back.read(ctx, p, offset)
		}
		return v.readThrough(ctx, p, offset)
	})
}

// WriteAt implements export.Device.
func (v *volume) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	return v.do("write", offset, int64(len(p)), func() error { return v.change(ctx, writeOf(p, offset), fua) })
}

// Zero implements export.Device.
func (v *volume) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	return v.do("zero", offset, length, func() error {
		if z.Fast && z.NoHole && v.mode != cache.Back {
			return fault.Errorf(fault.Unsupported, "zeros that take up space are written like any")
		}
		return v.change(ctx, change{offset: offset, length: length, noHole: z.NoHole && !z.Trim}, z.FUA)
	})
}

func (v *volume) change(ctx context.Context, c change, fua bool) error {
	switch v.mode {
	case cache.Offline:
		return v.offline.change(ctx, c, fua)
	case cache.Back:
		return v.back.change(ctx, c, fua)
	}
	return v.apart(ctx, c, func(ctx context.Context, c change) error {
		if !fua {
			return v.apply(ctx, c, v.mode == cache.Through)
		}
		return v.durably(ctx, v.patientSync, func() error { return v.apply(ctx, c, v.mode == cache.Through) })
	})
}

// durably changes the source and syncs it. A sync that fails is told once, maybe to somebody else who asked for one
// meanwhile: what was changed before may be lost all the same.
func (v *volume) durably(ctx context.Context, sync func(context.Context) error, change func() error) error {
	before := v.lostSyncs.Load()
	if err := change(); err != nil {
		return err
	}
	if err := sync(ctx); err != nil {
		return err
	}
	if v.lostSyncs.Load() != before {
		return fault.Errorf(fault.Unavailable, "the source may have lost what it had not synced")
	}
	return nil
}

// syncSource makes durable what the source has; many share one sync. Bits of chunks that were changed since the last
// one go on file only now: until then the source may lose what they hold. It is not done again after an error: what
// the source lost, a second sync does not bring back. The cache drops it too, so that reads now and later agree.
func (v *volume) syncSource(context.Context) error {
	return v.sourceSyncs.do(func() error {
		v.present.beginSync()
		err := v.remote.sync()
		late := v.lateSync.Swap(nil)
		if late != nil {
			err = errors.Join(err, *late)
		}
		var notBegun *repository.NotBegun
		if late == nil && errors.As(err, &notBegun) {
			return err
		}
		if err == nil {
			if err := v.present.endSync(); err != nil {
				v.local(err)
				return v.loseMap()
			}
			return nil
		}
		v.lostSyncs.Add(1)
		for c := range v.present.doubtful() {
			if err := v.forget(v.life, c, c+1); err != nil {
				return err
			}
		}
		return err
	})
}

// patientSync waits for a source that cannot be reached, as long as it was not even asked.
func (v *volume) patientSync(ctx context.Context) error {
	var failed error
	_ = v.patient(ctx, func() error {
		failed = v.syncSource(ctx)
		if notBegun := (*repository.NotBegun)(nil); !errors.As(failed, &notBegun) {
			return nil
		}
		return failed
	})
	return failed
}

// baselinePatience is for how long Open and Close wait for the source to sync what machines wrote before.
const baselinePatience = 10 * time.Second

// baseline makes durable in the source what was written before now: an error would not be told to those who wrote
// it. When the source does not do that, what is read of it is not believed after the next Open. An error that comes
// too late is the next flush's.
func (v *volume) baseline(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, baselinePatience)
	defer cancel()
	gaveUp := false
	var mu sync.Mutex
	err := v.apart(ctx, change{}, func(ctx context.Context, _ change) error {
		err := v.syncSource(ctx)
		mu.Lock()
		defer mu.Unlock()
		if gaveUp && err != nil {
			v.lateSync.Store(&err)
		}
		return err
	})
	mu.Lock()
	defer mu.Unlock()
	gaveUp = true
	if err != nil {
		v.log.Warn("source did not sync what was written before", "volume", v.name, "error", err)
	}
}

// Flush implements export.Device.
func (v *volume) Flush(ctx context.Context) error {
	return v.do("flush", 0, 1, func() error {
		switch v.mode {
		case cache.Offline:
			return v.offline.flush(ctx)
		case cache.Back:
			return v.back.flush(ctx)
		}
		return v.syncThrough(ctx)
	})
}

// syncThrough has the source sync what AROUND and THRU wrote to it.
func (v *volume) syncThrough(ctx context.Context) error {
	return v.apart(ctx, change{}, func(ctx context.Context, _ change) error {
		if err := v.patientSync(ctx); err != nil {
			return err
		}
		// A change from another mode that a crash undid may have left the mark.
		return v.patient(ctx, func() error { return v.remote.Undrained(ctx, false) })
	})
}

// Prefetch implements export.Device.
func (v *volume) Prefetch(ctx context.Context, offset, length int64) error {
	return v.do("prefetch", offset, length, func() error {
		if v.mode == cache.Offline {
			return nil
		}
		first, last := chunksIn(offset, length)
		return v.fetch(ctx, first, last, nil)
	})
}

// apart does work with the source, which may hang, so that the caller need not wait for longer than ctx. The work
// goes on then, with bytes of its own.
func (v *volume) apart(ctx context.Context, c change, work func(context.Context, change) error) error {
	if ctx.Done() == nil {
		return work(v.life, c)
	}
	if err := ctx.Err(); err != nil {
		return fault.As(fault.Unavailable, err)
	}
	var buffer *[]byte
	if c.p != nil {
		buffer = v.buffer(len(c.p))
		copy(*buffer, c.p)
		c.p = *buffer
	}
	v.work.Add(1) // the caller is inside, so it is not zero
	done := make(chan error, 1)
	life, cancel := context.WithCancel(v.life)
	stop := context.AfterFunc(ctx, cancel)
	go func() {
		defer v.leave()
		defer cancel()
		defer stop()
		err := work(life, c)
		if buffer != nil && err == nil { // after an error the source may still read it
			v.buffers.Put(buffer)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fault.As(fault.Unavailable, ctx.Err())
	}
}

func (v *volume) buffer(n int) *[]byte {
	if b, ok := v.buffers.Get().(*[]byte); ok && cap(*b) >= n {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n)
	return &b
}

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if string(p[:n]) != string(zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// local notes trouble with the storage of this host, once: the cache goes on without what it could not keep.
func (v *volume) local(err error) {
	if err != nil && !v.quit.Load() && !v.troubled.Swap(true) {
		v.log.Warn("cache goes on without what the local storage does not take", "volume", v.name, "error", err)
	}
}

// setPresent and clearPresent change the map. When its file does not take that, there must be none, so that the next
// Open does not believe it; the memory's copy goes on.
func (v *volume) setPresent(from, to int64) error {
	if v.present.set(from, to) == nil {
		return nil
	}
	if err := v.loseMap(); err != nil {
		return err
	}
	return v.present.set(from, to)
}

// clearPresent reports how many bits there were.
func (v *volume) clearPresent(from, to int64) (int64, error) {
	n, err := v.present.clear(from, to)
	if err == nil {
		return n, nil
	}
	if err := v.loseMap(); err != nil {
		return n, err
	}
	m, err := v.present.clear(from, to)
	return n + m, err
}

func (v *volume) loseMap() error {
	err := v.dir.Remove(mapFile)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	v.present.forgetFile()
	return nil
}

// Status implements cache.Volume.
func (v *volume) Status() cache.VolumeStatus {
	s := cache.VolumeStatus{
		Mode: v.mode, Cached: v.present.count.Load() * chunkSize,
		Hits: v.hits.Load(), Misses: v.misses.Load(),
		FromSource: v.remote.read.Load(), ToSource: v.remote.written.Load(),
	}
	switch v.mode {
	case cache.Back:
		v.back.status(&s)
	case cache.Offline:
		v.offline.status(&s)
	}
	return s
}

// Settle implements cache.Volume.
func (v *volume) Settle(ctx context.Context, report func(done, total int64)) error {
	if report == nil {
		report = func(int64, int64) {}
	}
	return v.do("settle", 0, 1, func() error {
		switch v.mode {
		case cache.Offline:
			return v.offline.settle(ctx, report)
		case cache.Back:
			return v.back.settle(ctx, report)
		}
		return v.syncThrough(ctx)
	})
}

// Load implements cache.Volume.
func (v *volume) Load(ctx context.Context, bytes int64, report func(done, total int64)) error {
	if report == nil {
		report = func(int64, int64) {}
	}
	bytes = max(0, min(bytes, v.size))
	if v.mode == cache.Offline {
		bytes = v.size
	}
	return v.do("load", 0, bytes, func() error {
		if v.mode == cache.Offline {
			return v.offline.load(ctx, report)
		}
		return v.fetch(ctx, 0, chunksOf(bytes), report)
	})
}

// closePatience is for how long Close waits for a source that does not answer.
const closePatience = 30 * time.Second

// Close implements cache.Volume.
func (v *volume) Close() error {
	v.closeMu.Lock()
	if v.quit.Swap(true) {
		v.closeMu.Unlock()
		return nil
	}
	v.closeMu.Unlock()
	if (v.mode == cache.Around || v.mode == cache.Through) && v.present.held() {
		v.baseline(v.life)
	}
	v.stop()
	idle := make(chan struct{})
	go func() {
		v.work.Wait()
		close(idle)
	}()
	t := time.NewTimer(closePatience)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
		// The state stays unclean. The goroutines end when the source answers.
		return fault.Errorf(fault.Unavailable, "volume of %s: close: the source does not answer", v.name)
	}
	if err := v.shut(); err != nil {
		return fmt.Errorf("volume of %s: close: %w", v.name, err)
	}
	return nil
}

// shut syncs and closes the files, and says in the state that all of it may be believed.
func (v *volume) shut() error {
	var errs []error
	if v.back != nil {
		errs = append(errs, v.back.shut())
	}
	if v.offline != nil {
		errs = append(errs, v.offline.shut())
	}
	if err := errors.Join(v.data.Sync(), v.present.sync()); err != nil {
		v.state.Generation++ // the cached chunks are not believed
		if v.offline != nil {
			errs = append(errs, err)
		}
	}
	if errors.Join(errs...) == nil {
		v.state.Clean, v.state.Unsynced = true, v.present.held()
		errs = append(errs, v.state.write(v.dir))
	}
	return errors.Join(append(errs, v.closeFiles())...)
}

func (v *volume) closeFiles() error {
	var errs []error
	closers := []io.Closer{v.data, v.present.closer()}
	if v.back != nil {
		closers = append(closers, v.back.file)
	}
	if v.offline != nil {
		closers = append(closers, v.offline.dirty.closer(), v.offline.origin)
	}
	for _, c := range closers {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Discard implements cache.Volume.
func (v *volume) Discard(ctx context.Context) error {
	if s := v.Status(); s.Undrained > 0 {
		return fault.Errorf(fault.WrongState, "volume of %s: %d bytes are not in its source yet", v.name, s.Undrained)
	}
	if err := v.Close(); err != nil {
		return err
	}
	return wipe(v.dir)
}

// wipe removes the files of a volume, first the one that gives the others their meaning.
func wipe(dir storage.Dir) error {
	for _, name := range []string{stateFile, stateFile + temporary, logFile, logFile + temporary, mapFile, dirtyFile, originFile, dataFile} {
		if err := dir.Remove(name); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return dir.Sync()
}
