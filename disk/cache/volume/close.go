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
