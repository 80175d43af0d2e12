package blockd

import (
	"path/filepath"

	"hayloft/disk/cache/base"
	"hayloft/disk/cache/volume"
	"hayloft/disk/export/nbd"
)

// defaults fills in the rooms beside this one.
func (c *Config) defaults() {
	if c.Files == "" {
		c.Files = filesOf(c.StateDir)
	}
	if c.Base == nil {
		c.Base = base.Open
	}
	if c.Volume == nil {
		c.Volume = volume.Open
	}
	if c.Present == nil {
		f := newFiles(c.Files, filepath.Join(c.StateDir, fuseState), c.Patience, c.Log)
		c.Present = map[Kind]Presenter{NBD: nbdPresenter{nbd.NewBudget(), c.Log}, FUSE: f, Loop: newLoops(f)}
	}
}

func filesOf(stateDir string) string { return filepath.Clean(stateDir) + ".files" }
