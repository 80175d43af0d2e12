package volume

import (
	"fmt"
)

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
