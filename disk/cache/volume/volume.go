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
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/export"
	"hayloft/internal/ranges"
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
	lostSyncs   atomic.Uint64 // that failed
	toldSyncs   atomic.Uint64 // of these, by a flush that failed
	data        storage.File
	present     *bitmap
	residents   residents
	ranges      ranges.Queue
	flights     flights
	writers     writers
	back        *backlog // BACK
	offline     *offline // OFFLINE

	stateMu  sync.Mutex
	state    state
	believed bool // what was not synced before this Open
	distrust bool // what is cached, after this run
	unsure   bool // whether a sync failed in the run before, which left memory and disk in disagreement that nobody is told of again

	life context.Context // until Close
	stop context.CancelFunc

	closeMu sync.Mutex // of enter against Close
	quit    atomic.Bool
	work    sync.WaitGroup
	ending  sync.Mutex    // of Close
	idle    chan struct{} // closed when no work is left; nil before Close
	ended   bool          // the files are closed

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
