package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/internal/undo"
)

const defaultPatience = 10 * time.Minute

// Open opens the volume whose files are in c.Dir, or makes it. What a volume of another mode left there is kept as
// far as it is of use; when that mode was BACK or OFFLINE, what the source has not is settled first. The source
// stays the caller's, who closes it after the volume. Errors: fault.Invalid for a configuration that cannot be;
// fault.Corrupt for files that are not as a crash may leave them; those of the source and of Dir.
func Open(ctx context.Context, c cache.VolumeConfig) (cache.Volume, error) {
	v, err := open(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("volume of %s: %w", c.Name, err)
	}
	return v, nil
}

func open(ctx context.Context, c cache.VolumeConfig) (_ *volume, err error) {
	if err := checkConfig(c); err != nil {
		return nil, err
	}
	st, err := readState(c.Dir)
	if err != nil {
		return nil, err
	}
	fresh := st == nil
	if fresh {
		if err := wipe(c.Dir); err != nil {
			return nil, err
		}
		st = &state{Format: stateFormat, Mode: c.Mode, Size: c.Size, Generation: 1, Clean: true}
	} else if err := c.Dir.Sync(); err != nil { // the last run may have died before this state was durable
		return nil, fmt.Errorf("state: %w", err)
	}
	if st.Size > c.Size {
		return nil, fault.Errorf(fault.Invalid, "its files are of %d bytes, more than %d", st.Size, c.Size)
	}
	v := newVolume(c, *st)
	unsynced, wasClean := st.Unsynced, st.Clean
	v.believed = st.Clean && !st.Unsure || st.Boot != "" && st.Boot == c.Boot
	v.unsure = (!st.Clean || st.Unsure) && (st.Boot == c.Boot || st.Boot == "" || c.Boot == "")
	var u undo.Stack
	defer u.Run()
	u.Push(func() error { v.stop(); v.work.Wait(); return nil })
	if err := v.openFiles(&u); err != nil {
		return nil, err
	}
	if fresh && c.Mode == cache.Back {
		if err := createLog(c.Dir, logSize(c)); err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
	}
	v.state.Boot, v.state.Clean, v.state.Size = c.Boot, false, c.Size
	if err := v.state.write(v.dir); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if err := v.takeOver(ctx, c, wasClean, &u); err != nil {
		return nil, err
	}
	if v.mode != cache.Offline && (unsynced || !fresh && !wasClean) {
		v.present.holdAbsent() // what the last run wrote, the source may still lose
		v.baseline(ctx)
	}
	v.limitTo(c)
	if v.back != nil {
		v.back.start(&u)
	}
	u.Keep()
	v.log.Info("volume opened", "volume", v.name, "mode", v.mode, "cached", v.present.count.Load()*chunkSize)
	return v, nil
}

func checkConfig(c cache.VolumeConfig) error {
	switch {
	case !known(c.Mode):
		return fault.Errorf(fault.Invalid, "CACHE_MODE %q", c.Mode)
	case c.Size <= 0 || c.Size > maxSize:
		return fault.Errorf(fault.Invalid, "size %d", c.Size)
	case c.Capacity < 0:
		return fault.Errorf(fault.Invalid, "CACHE_SIZE %d", c.Capacity)
	case c.Mode == cache.Offline && c.Capacity > 0 && c.Capacity < c.Size:
		return fault.Errorf(fault.Invalid, "CACHE_SIZE of %d bytes: CACHE_MODE OFFLINE needs all %d", c.Capacity, c.Size)
	case c.Dir == nil || c.Source == nil:
		return fault.Errorf(fault.Invalid, "no directory or no source")
	}
	return nil
}

func newVolume(c cache.VolumeConfig, st state) *volume {
	v := &volume{name: c.Name, dir: c.Dir, size: c.Size, mode: st.Mode, patience: c.Patience, log: c.Log, state: st}
	if v.patience == 0 {
		v.patience = defaultPatience
	}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	v.remote.Source, v.remote.size = c.Source, c.Size
	v.flights.byChunk = map[int64]*flight{}
	v.flights.memory = semaphore.NewWeighted(chunksInFlight)
	v.sourceSyncs = newGroupSync()
	v.writers.byChunk = map[int64]*shared{}
	v.residents.limit = -1
	if st.Lost {
		v.lostSyncs.Store(1)
	}
	v.life, v.stop = context.WithCancel(context.Background())
	return v
}

// openFiles opens data and map, and drops what is not to be believed.
func (v *volume) openFiles(u *undo.Stack) error {
	var err error
	var was int64
	if v.data, was, err = openOrCreate(v.dir, dataFile, u); err != nil {
		return err
	}
	if was != v.size {
		if err := v.data.Truncate(v.size); err != nil {
			return fmt.Errorf("data: %w", err)
		}
	}
	if was < v.state.Size {
		v.state.Generation++ // what is missing cannot be right
		if v.state.Loaded > 0 || v.state.Complete {
			return fault.Errorf(fault.Corrupt, "data: %d bytes instead of %d", was, v.state.Size)
		}
	}
	file, _, err := openOrCreate(v.dir, mapFile, u)
	if err != nil {
		return err
	}
	if !v.believed {
		v.state.Generation++
	}
	v.present = newBitmap(file, v.state.Generation, chunksOf(v.size))
	right, err := v.present.load(false)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	loaded := v.state.Loaded
	if v.state.Complete {
		loaded = v.present.size
	}
	if loaded > 0 && (!right || !v.believed) {
		if err := v.present.set(0, loaded); err != nil {
			return fmt.Errorf("map: %w", err)
		}
	}
	if v.state.Mode == cache.Offline {
		if v.offline, err = openOffline(v, u); err != nil {
			return err
		}
	}
	if !v.state.Complete && v.present.count.Load() == 0 {
		// Nothing in it counts: give its space back.
		if err := errors.Join(v.data.Truncate(0), v.data.Truncate(v.size)); err != nil {
			return fmt.Errorf("data: %w", err)
		}
	}
	v.residents.used.Store(v.present.count.Load())
	return nil
}

// openOrCreate also tells the length.
func openOrCreate(dir storage.Dir, name string, u *undo.Stack) (storage.File, int64, error) {
	f, err := dir.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = dir.Create(name)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", name, err)
	}
	u.Push(f.Close)
	size, err := f.Size()
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", name, err)
	}
	return f, size, nil
}

// takeOver goes from the mode of the files to the one that is wanted. Each step leaves a state that says what is
// there.
func (v *volume) takeOver(ctx context.Context, c cache.VolumeConfig, clean bool, u *undo.Stack) (err error) {
	if v.mode == cache.Back {
		if v.back, err = openLog(v, clean, u); err != nil {
			return err
		}
	}
	if v.mode == c.Mode {
		return v.resizeLog(c, u)
	}
	if err := v.leaveMode(ctx, u); err != nil {
		return fmt.Errorf("leaving CACHE_MODE %s: %w", v.mode, err)
	}
	if c.Mode == cache.Back {
		if err := createLog(v.dir, logSize(c)); err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	old := v.mode
	v.mode, v.state.Mode = c.Mode, c.Mode
	v.state.Loaded, v.state.Complete, v.state.Lost = 0, false, false
	v.toldSyncs.Store(v.lostSyncs.Load())
	if err := v.state.write(v.dir); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	for _, name := range []string{dirtyFile, originFile} {
		if err := v.dir.Remove(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	switch {
	case old == cache.Back:
		if err := v.dir.Remove(logFile); err != nil {
			return fmt.Errorf("log: %w", err)
		}
	case c.Mode == cache.Back:
		v.back, err = openLog(v, true, u)
	}
	if c.Mode == cache.Offline {
		v.offline, err = openOffline(v, u)
	}
	v.log.Info("volume changed its mode", "volume", v.name, "from", old, "to", v.mode)
	return err
}

// leaveMode brings to the source what only the old mode knew of.
func (v *volume) leaveMode(ctx context.Context, u *undo.Stack) error {
	nothing := func(int64, int64) {}
	switch {
	case v.back != nil:
		v.back.start(u)
		if err := v.back.settle(ctx, nothing); err != nil {
			return err
		}
		if err := errors.Join(v.back.shut(), v.back.file.Close()); err != nil {
			return err
		}
		v.back = nil
	case v.offline != nil:
		if v.state.Complete {
			if err := v.offline.settle(ctx, nothing); err != nil {
				return err
			}
		}
		o := v.offline
		v.offline, v.distrust = nil, o.isUnsure()
		return errors.Join(o.dirty.closer().Close(), o.origin.Close())
	}
	return nil
}

// limitTo bounds the cached chunks. What is too much goes, and what has no bit is given back, once.
func (v *volume) limitTo(c cache.VolumeConfig) {
	capacity := c.Capacity
	if v.back != nil {
		capacity -= v.back.ring
	}
	if c.Capacity == 0 || capacity >= c.Size {
		return
	}
	r := &v.residents
	r.limit = max(capacity, 0) / chunkSize
	r.touched = make([]atomic.Uint64, len(v.present.words))
	for chunk := int64(0); chunk < v.present.size; {
		next := v.present.next(chunk)
		if chunk < next {
			if err := v.giveBack(chunk, next); err != nil {
				v.local(err)
			}
		}
		chunk = next
		if chunk < v.present.size && r.used.Load() > r.limit {
			if err := v.drop(chunk, chunk+1); err != nil {
				v.local(err)
				return
			}
		}
		chunk++
	}
}
