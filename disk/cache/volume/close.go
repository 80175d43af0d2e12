package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
)

// closePatience is for how long Close waits for a source that does not answer.
const closePatience = 30 * time.Second

// Close implements cache.Volume. While the source does not answer it is fault.Unavailable, and to be called again: until
// then somebody may still be at work in the files.
func (v *volume) Close() error {
	v.ending.Lock()
	defer v.ending.Unlock()
	if v.ended {
		return nil
	}
	v.closeMu.Lock()
	first := !v.quit.Swap(true)
	v.closeMu.Unlock()
	if first {
		if (v.mode == cache.Around || v.mode == cache.Through) && v.present.held() {
			v.baseline(v.life)
		}
		v.stop()
		v.idle = make(chan struct{})
		go func() {
			v.work.Wait()
			close(v.idle)
		}()
	}
	t := time.NewTimer(closePatience)
	defer t.Stop()
	select {
	case <-v.idle:
	case <-t.C:
		return fault.Errorf(fault.Unavailable, "volume of %s: close: the source does not answer", v.name)
	}
	v.ended = true
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
	err := errors.Join(v.data.Sync(), v.present.sync())
	if err != nil && v.offline != nil {
		errs = append(errs, err)
	}
	// A map that was removed may come back: its removal is not durable.
	if err != nil || v.present.hasNoFile() || v.distrust || v.offline != nil && v.offline.isUnsure() {
		v.state.Generation++ // the cached chunks are not believed
	}
	if errors.Join(errs...) == nil {
		v.state.Clean, v.state.Unsynced = true, v.present.held()
		v.state.Unsure = v.unsure && (v.offline == nil || !v.offline.ready.Load())
		v.state.Lost = (v.mode == cache.Around || v.mode == cache.Through) && v.lostSyncs.Load() != v.toldSyncs.Load()
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
	if err := v.drained(); err != nil {
		return err
	}
	if err := v.Close(); err != nil {
		return err
	}
	if err := v.drained(); err != nil { // what was under way is acknowledged too
		return err
	}
	return wipe(v.dir)
}

// drained is fault.WrongState while the source has not everything.
func (v *volume) drained() error {
	if n := v.Status().Undrained; n > 0 {
		return fault.Errorf(fault.WrongState, "volume of %s: %d bytes are not in its source yet", v.name, n)
	}
	return nil
}

// wipe removes the files of a volume, first the one that gives the others their meaning: that one durably, or a power
// cut would leave a volume without what it says there is.
func wipe(dir storage.Dir) error {
	for _, names := range [][]string{{stateFile, stateFile + temporary}, {logFile, logFile + temporary, mapFile, dirtyFile, originFile, dataFile}} {
		for _, name := range names {
			if err := dir.Remove(name); err != nil {
				return fmt.Errorf("remove %s: %w", name, err)
			}
		}
		if err := dir.Sync(); err != nil {
			return err
		}
	}
	return nil
}
