package volume

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
)

// The files of a volume in its directory.
const (
	dataFile   = "data"   // sparse, of the volume's length: what is cached, at its own offsets
	mapFile    = "map"    // which chunks of data are right, see bitmap
	dirtyFile  = "dirty"  // OFFLINE: which chunks were changed since the image was copied in
	originFile = "origin" // OFFLINE: the digest of each chunk as it is in the source; zeros where that is not known
	logFile    = "log"    // BACK
	stateFile  = "state"
	temporary  = ".new" // of state and log, until they are whole
)

const stateFormat = 1

// state is what a volume knows about itself. The file is replaced at once, durably, before anything that it is
// about changes.
type state struct {
	Format int        `json:"format"`
	Mode   cache.Mode `json:"mode"`
	Size   int64      `json:"size"`
	// Boot and Clean say how far what was not synced may be believed: all of it after a Close (Clean) and in the
	// same run of the operating system; nothing otherwise.
	Boot  string `json:"boot"`
	Clean bool   `json:"clean"`
	// Unsynced: it was closed with changes in the source that this had not synced.
	Unsynced bool `json:"unsynced,omitempty"`
	// Unsure: it was closed in order, after a run that was not: of what that one cached, nobody knows whether it is durable.
	Unsure bool `json:"unsure,omitempty"`
	// Lost: a sync of the source failed (AROUND, THRU), and no flush has told of it.
	Lost bool `json:"lost,omitempty"`
	// Generation is that of the map's blocks; those of another are empty.
	Generation uint32 `json:"generation"`
	// Loaded is how many chunks from the start an OFFLINE volume holds durably; Complete when all and their dirty
	// bits count.
	Loaded   int64 `json:"loaded,omitempty"`
	Complete bool  `json:"complete,omitempty"`
	// Marked: the source carries the mark of undrained writes. When it is false that is not known (OFFLINE).
	Marked bool `json:"marked,omitempty"`
}

// readState gives nil when there is none.
func readState(dir storage.Dir) (*state, error) {
	f, err := dir.Open(stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > 1<<16 {
		return nil, fault.Errorf(fault.Corrupt, "state: %d bytes", size)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) && err != nil && err != io.EOF {
		return nil, err
	}
	return parseState(b)
}

func parseState(b []byte) (*state, error) {
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fault.Errorf(fault.Corrupt, "state: %w", err)
	}
	if s.Format != stateFormat {
		return nil, fault.Errorf(fault.Unsupported, "state: format %d, this program reads %d", s.Format, stateFormat)
	}
	if s.Size < 0 || s.Size > maxSize || s.Loaded < 0 || s.Loaded > chunksOf(s.Size) || !known(s.Mode) {
		return nil, fault.Errorf(fault.Corrupt, "state: mode %q, size %d, loaded %d", s.Mode, s.Size, s.Loaded)
	}
	return &s, nil
}

// write replaces the state durably.
func (s *state) write(dir storage.Dir) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := dir.Create(stateFile + temporary)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := dir.Rename(stateFile+temporary, stateFile); err != nil {
		return err
	}
	return dir.Sync()
}

func known(m cache.Mode) bool {
	switch m {
	case cache.Around, cache.Through, cache.Back, cache.Offline:
		return true
	}
	return false
}
