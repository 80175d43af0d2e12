package blockd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/export"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
)

// Config of a Daemon. Only StateDir must be given.
type Config struct {
	StateDir string // directory of what is remembered, made when missing
	Files    string // where files are mounted (FUSE), which machines must reach; "": StateDir with ".files" at its end
	Boot     string // of the operating system, see cache.VolumeConfig; "": as the kernel says
	Version  string
	Log      *slog.Logger                                                // nil: slog.Default
	Open     func(disk.Repository) (repository.Repository, error)        // nil: drivers.Open
	Base     func(context.Context, cache.BaseConfig) (cache.Base, error) // nil: that of package base
	Volume   func(context.Context, cache.VolumeConfig) (cache.Volume, error)
	// Present makes devices reachable. Kinds without one are fault.Unsupported; nil: all kinds that there are.
	Present  map[Kind]Presenter
	Patience time.Duration // as in cache.BaseConfig
}

// Presenter makes devices reachable in one way.
type Presenter interface {
	// Present makes d reachable as e says and returns once it is. What a process that died left at e.Path is replaced.
	Present(e Export, d export.Device) (Presented, error)
}

// Presented is a device that is reachable.
type Presented interface {
	Device() string // the block device, "" when it is none
	Connections() int
	// Close answers the requests that are under way, and ends it.
	Close() error
}

// Daemon implements Service in this process.
type Daemon struct {
	config      Config
	exportsKept records[exportRecord]
	basesKept   records[baseRecord]
	ctx         context.Context // of everything that goes on between calls
	stop        context.CancelFunc
	group       sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	turns   turns
	exports map[string]*exported
	making  map[string]*exported // not reachable yet
	bases   map[string]*based    // by digest
}

var _ Service = (*Daemon)(nil)

const bootFile = "/proc/sys/kernel/random/boot_id"

// New opens what is remembered in StateDir again: when it returns, the exports of before are reachable. Their
// devices are opened meanwhile; requests wait for them.
func New(c Config) (*Daemon, error) {
	if !filepath.IsAbs(c.StateDir) {
		return nil, fault.Errorf(fault.Invalid, "blockd: state directory %q is not absolute", c.StateDir)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Boot == "" {
		text, err := os.ReadFile(bootFile)
		if err != nil {
			return nil, fmt.Errorf("blockd: %w", err)
		}
		c.Boot = strings.TrimSpace(string(text))
	}
	if c.Open == nil {
		c.Open = drivers.Open
	}
	c.defaults()
	d := &Daemon{config: c, exports: map[string]*exported{}, making: map[string]*exported{}, bases: map[string]*based{},
		exportsKept: records[exportRecord]{filepath.Join(c.StateDir, "exports")}, basesKept: records[baseRecord]{filepath.Join(c.StateDir, "bases")}}
	d.ctx, d.stop = context.WithCancel(context.Background())
	if err := d.remember(); err != nil {
		return nil, errors.Join(fmt.Errorf("blockd: state directory %s: %w", c.StateDir, err), d.Close())
	}
	return d, nil
}

// remember opens again what the records say.
func (d *Daemon) remember() error {
	bad := func(file string, err error) { d.config.Log.Error("record left out", "file", file, "error", err) }
	bases, err := d.basesKept.all(bad)
	if err != nil {
		return err
	}
	for _, r := range bases {
		hex, err := checkBase(r.Spec)
		if err != nil {
			bad(r.Spec.Image.Digest, err)
			continue
		}
		if _, err := os.Stat(r.Spec.Dir); errors.Is(err, os.ErrNotExist) { // removed without a word to us
			if err := d.basesKept.remove(hex); err != nil {
				return err
			}
			continue
		}
		d.bases[r.Spec.Image.Digest] = newBased(d, r)
	}
	exports, err := d.exportsKept.all(bad)
	if err != nil {
		return err
	}
	for _, r := range exports {
		if err := checkExport(r.Export); err != nil {
			bad(r.Export.Name, err)
			continue
		}
		d.exports[r.Export.Name] = newExported(d, r)
	}
	d.restore()
	for _, x := range d.exports {
		if err := x.resume(); err != nil {
			d.config.Log.Error("export not reachable after restart", "export", x.record.Export.Name, "error", err)
		}
	}
	return nil
}

// restore has those presenters go on whose devices are still in use.
func (d *Daemon) restore() {
	for _, x := range d.exports {
		if p, ok := d.config.Present[x.record.Export.Kind].(restoring); ok {
			if err := p.prepare(x.record.Export, x.door); err != nil {
				d.config.Log.Error("export does not go on", "export", x.record.Export.Name, "error", err)
			}
		}
	}
	for kind, p := range d.config.Present {
		if p, ok := p.(restoring); ok {
			if err := p.resume(); err != nil {
				d.config.Log.Error("exports do not go on", "kind", kind, "error", err)
			}
		}
	}
}

// Close ends everything: requests under way are answered, and what is remembered is opened by the next New.
func (d *Daemon) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	for _, p := range d.config.Present {
		if e, ok := p.(ending); ok {
			e.ending()
		}
	}
	d.stop()
	d.group.Wait() // from here on nobody else changes exports
	errs := make([]error, len(d.exports))
	var group sync.WaitGroup
	for i, x := range sorted(d.exports) {
		group.Go(func() { errs[i] = x.leave() })
	}
	group.Wait()
	for _, p := range d.config.Present {
		if c, ok := p.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// errEnding is the error of all calls after Close.
var errEnding = fault.Errorf(fault.Unavailable, "blockd is ending")

// enter begins a call: its context ends with the daemon, which waits for it. After Close there are none.
func (d *Daemon) enter(ctx context.Context) (context.Context, func(), error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, errEnding
	}
	d.group.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		d.group.Done()
	}, nil
}

// spawn runs f until it returns; its context ends with the daemon's.
func (d *Daemon) spawn(f func(ctx context.Context)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.group.Go(func() { f(d.ctx) })
	return true
}

// inUse is the number of exports.
func (d *Daemon) inUse() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.exports)
}
