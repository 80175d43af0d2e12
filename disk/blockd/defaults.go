package blockd

import (
	"hayloft/disk/cache/base"
	"hayloft/disk/cache/volume"
	"hayloft/disk/export/nbd"
)

// defaults fills in the rooms beside this one.
func (c *Config) defaults() {
	if c.Base == nil {
		c.Base = base.Open
	}
	if c.Volume == nil {
		c.Volume = volume.Open
	}
	if c.Present == nil {
		c.Present = map[Kind]Presenter{NBD: nbdPresenter{nbd.NewBudget(), c.Log}}
	}
}
