// Package way puts repositories and local stores together to the way of a disk on one host: it implements disk.Way.
package way

import (
	"context"
	"log/slog"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/internal/command"
)

// Config of a host's way.
type Config struct {
	Root   string // LS_PATH, a directory, made when missing
	Max    int64  // LS_MAX in bytes; 0: the file system's size
	Runner command.Runner
	Log    *slog.Logger // nil: slog.Default
	GID    int          // group that may read bases: the hypervisor processes'
	Host   string       // name of this host in marks of ownership; "": the host name
}

// Way implements disk.Way.
type Way struct {
	config Config
}

var _ disk.Way = (*Way)(nil)

// New opens the local store under c.Root and removes what a crash left half-made there.
func New(c Config) (*Way, error) { return &Way{config: c}, nil }

var errBuilding = fault.Errorf(fault.Unsupported, "the way of a disk: being built")

func (w *Way) Prepare(ctx context.Context, r disk.Request, report func(disk.Progress)) (disk.Prepared, error) {
	return disk.Prepared{}, errBuilding
}
func (w *Way) Remove(ctx context.Context, machine int, dir string) error { return errBuilding }
func (w *Way) SaveAs(ctx context.Context, machine int, dir string, spec disk.Spec, to disk.Repository, name string, report func(disk.Progress)) (disk.Saved, error) {
	return disk.Saved{}, errBuilding
}
func (w *Way) Stash(ctx context.Context, machine int, dir string, extra []string, to disk.Repository) error {
	return errBuilding
}
func (w *Way) Unstash(ctx context.Context, r disk.Request, from disk.Repository, report func(disk.Progress)) (disk.Prepared, error) {
	return disk.Prepared{}, errBuilding
}
func (w *Way) DropStash(ctx context.Context, machine int, from disk.Repository) error {
	return errBuilding
}
func (w *Way) Resize(ctx context.Context, machine int, dir string, diskID int, size int64) error {
	return errBuilding
}
func (w *Way) Capacity(ctx context.Context) (disk.Capacity, error) {
	return disk.Capacity{}, errBuilding
}
func (w *Way) Bases(ctx context.Context) ([]string, error)  { return nil, errBuilding }
func (w *Way) Machines(ctx context.Context) ([]int, error) { return nil, errBuilding }
