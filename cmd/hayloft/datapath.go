package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/blockd"
	"hayloft/disk/cache"
)

// dataPath is the data path of this host as its agent uses it. Its process is started by the first call, and outlives
// the agent for as long as it has exports.
type dataPath struct {
	stateDir string
	keeper   *blockd.Keeper
	begin    func() // starts the keeper, once
	end      func() // ends the keeper, if it was started; nothing else is begun after that
}

var _ blockd.Service = (*dataPath)(nil)

func newDataPath(agentDir string, log *slog.Logger) (*dataPath, error) {
	d := &dataPath{stateDir: filepath.Join(agentDir, "blockd")}
	var err error
	if d.keeper, err = blockd.NewKeeper(blockd.KeeperConfig{StateDir: d.stateDir, Log: log}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	d.begin = sync.OnceFunc(func() {
		if ctx.Err() != nil {
			return
		}
		running.Go(func() {
			if err := d.keeper.Run(ctx); err != nil {
				log.Error("data path is not kept running", "error", err)
			}
		})
	})
	d.end = func() {
		cancel()
		d.begin() // waits for one that is beginning; from now on it does nothing
		running.Wait()
	}
	return d, nil
}

// endLimit is how long a process that exports nothing may take to end.
const endLimit = 20 * time.Second

// close leaves the process to itself when it has exports, and ends it otherwise.
func (d *dataPath) close() error {
	d.end()
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	c := blockd.NewClient(d.stateDir)
	defer c.Close()
	status, err := c.Status(ctx)
	if err != nil || len(status.Exports) > 0 {
		return nil // there is none, or it is needed
	}
	fd, err := unix.PidfdOpen(status.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if again, err := c.Status(ctx); err != nil || again.PID != status.PID {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return nil // it ended meanwhile
	}
	for ctx.Err() == nil {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100); n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return nil
		}
	}
	return ctx.Err()
}

func (d *dataPath) client() *blockd.Client {
	d.begin()
	return d.keeper.Client()
}

// Base implements blockd.Service.
func (d *dataPath) Base(ctx context.Context, s blockd.BaseSpec) (cache.BaseStatus, error) {
	return d.client().Base(ctx, s)
}

// Preload implements blockd.Service.
func (d *dataPath) Preload(ctx context.Context, p blockd.Preload, report func(done, total int64)) error {
	return d.client().Preload(ctx, p, report)
}

// Export implements blockd.Service.
func (d *dataPath) Export(ctx context.Context, e blockd.Export) error {
	return d.client().Export(ctx, e)
}

// Unexport implements blockd.Service.
func (d *dataPath) Unexport(ctx context.Context, name string) error {
	return d.client().Unexport(ctx, name)
}

// Settle implements blockd.Service.
func (d *dataPath) Settle(ctx context.Context, name string, report func(done, total int64)) error {
	return d.client().Settle(ctx, name, report)
}

// Discard implements blockd.Service.
func (d *dataPath) Discard(ctx context.Context, name string) error {
	return d.client().Discard(ctx, name)
}

// DropBase implements blockd.Service.
func (d *dataPath) DropBase(ctx context.Context, digest string) error {
	return d.client().DropBase(ctx, digest)
}

// Status implements blockd.Service.
func (d *dataPath) Status(ctx context.Context) (blockd.Status, error) {
	return d.client().Status(ctx)
}
