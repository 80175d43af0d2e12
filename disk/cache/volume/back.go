package volume

import (
	"context"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/internal/undo"
)

// backlog is the log of BACK, which comes with the next change; until then the mode is refused.
const minLog = 1 << 20

type backlog struct {
	file storage.File
	ring int64
}

var errNoBack = fault.Errorf(fault.Unsupported, "CACHE_MODE BACK")

func createLog(storage.Dir, int64) error                          { return errNoBack }
func logSize(cache.VolumeConfig) int64                            { return 0 }
func openLog(*volume, *undo.Stack) (*backlog, error)              { return nil, errNoBack }
func (v *volume) resizeLog(cache.VolumeConfig, *undo.Stack) error { return nil }
func (*backlog) read(context.Context, []byte, int64) error        { return errNoBack }
func (*backlog) tryRead([]byte, int64) bool                       { return false }
func (*backlog) tryWrite([]byte, int64) bool                      { return false }
func (*backlog) change(context.Context, change, bool) error       { return errNoBack }
func (*backlog) flush(context.Context) error                      { return errNoBack }
func (*backlog) settle(context.Context, func(int64, int64)) error { return errNoBack }
func (*backlog) shut() error                                      { return nil }
func (*backlog) status(*cache.VolumeStatus)                       {}
func (*backlog) dirtyIn(int64, int64) bool                        { return true }
func (*backlog) extents(context.Context, int64, int64, func(int64, int64, bool) bool) error {
	return errNoBack
}
