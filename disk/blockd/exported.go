package blockd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/localstore"
	"hayloft/internal/undo"
)

// exportRecord is what is remembered of an export.
type exportRecord struct {
	Export Export `json:"export"`
	Size   int64  `json:"size"` // of the device
	// Of a volume: with which the image was taken, and its length in the repository then.
	Generation uint64 `json:"generation,omitempty"`
	SourceSize int64  `json:"source_size,omitempty"`
}

// exported is one export. Its record does not change once it is made.
type exported struct {
	daemon  *Daemon
	record  exportRecord
	ctx     context.Context // ends with the export
	cancel  context.CancelFunc
	uses    sync.WaitGroup // of the volume, and the opening after a restart
	there   chan struct{}  // closed when the device can be reached
	reached sync.Once

	mu        sync.Mutex
	presented Presented
	former    bool  // presented is what a process before this one did, not looked at yet
	err       error // why it cannot be served
	ended     bool
	door      *door // nil while the export is being made
	// What the device is made of: base and recorder, or volume.
	base     *based
	recorder *recorder
	volume   cache.Volume
	source   *source
	reader   *reader // what a read-only image is read from
	direct   *direct // on source or reader: an image without a cache
}

func newExported(d *Daemon, r exportRecord) *exported {
	x := &exported{daemon: d, record: r, there: make(chan struct{})}
	x.ctx, x.cancel = context.WithCancel(d.ctx)
	if r.Size > 0 {
		x.door = newDoor(r.Size, r.Export.readOnly(), d.config.Patience)
	}
	return x
}

// openFirst opens the device of a new export.
func (x *exported) openFirst(ctx context.Context, back *undo.Stack) error {
	e := x.record.Export
	if e.Base != nil {
		back.Push(x.closeDevice)
		return x.openBase(ctx, e.Record)
	}
	if e.Direct != nil {
		return e.Direct.errorf(x.openDirectFirst(ctx, back))
	}
	repo, err := x.daemon.takeImage(ctx, *e.Volume, back)
	if err != nil {
		return e.Volume.errorf(err)
	}
	back.Push(x.closeDevice)
	return e.Volume.errorf(x.openVolumeFirst(ctx, repo))
}

func (x *exported) openBase(ctx context.Context, record bool) error {
	b, err := x.daemon.know(ctx, *x.record.Export.Base)
	if err != nil {
		return err
	}
	base, index, err := b.acquire(ctx)
	if err != nil {
		return err
	}
	b.exported(1)
	var touched func(int)
	x.mu.Lock()
	x.base = b
	if record {
		if x.recorder = b.newRecorder(index); x.recorder != nil {
			touched = x.recorder.touched
		}
	}
	x.mu.Unlock()
	if x.door == nil {
		x.record.Size = index.Length()
		x.makeDoor(true)
	}
	whole := b.wholeFile
	x.door.content.Store(&whole)
	x.door.open(base.Reader(touched))
	return nil
}

// wholeFile is the base's data when all of it is right, nil before.
func (b *based) wholeFile() *os.File {
	dir := b.spec().Dir
	if !exists(filepath.Join(dir, localstore.CompleteFile)) {
		return nil
	}
	f, err := os.Open(filepath.Join(dir, localstore.DataFile))
	if err != nil {
		return nil
	}
	return f
}

func (x *exported) makeDoor(readOnly bool) {
	door := newDoor(x.record.Size, readOnly, x.daemon.config.Patience)
	x.mu.Lock()
	x.door = door
	x.mu.Unlock()
}

// closeDevice closes what the export has open; nobody uses it by then. What cannot be closed yet, because a repository does
// not answer, stays, and can be closed again.
func (x *exported) closeDevice() error {
	x.mu.Lock()
	base, recorder, volume, direct := x.base, x.recorder, x.volume, x.direct
	x.base, x.recorder = nil, nil
	x.mu.Unlock()
	if recorder != nil {
		recorder.end()
	}
	if base != nil {
		base.exported(-1)
		return base.release()
	}
	if volume != nil {
		if err := volume.Close(); err != nil {
			return err
		}
	}
	if direct != nil {
		if err := direct.Close(); err != nil {
			return err
		}
	}
	x.mu.Lock()
	source, reader := x.source, x.reader
	x.volume, x.direct, x.source, x.reader = nil, nil, nil, nil
	x.mu.Unlock()
	var errs []error
	if source != nil {
		errs = append(errs, source.Close())
	}
	if reader != nil {
		errs = append(errs, reader.Close())
	}
	return errors.Join(errs...)
}

// isOpen reports whether closeDevice has something to close.
func (x *exported) isOpen() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.base != nil || x.volume != nil || x.direct != nil || x.source != nil || x.reader != nil
}

func (x *exported) hasEnded() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.ended
}

const (
	reopenFirst = 100 * time.Millisecond
	reopenMost  = 5 * time.Second
)

// resume makes an export of before a restart reachable at once, and opens its device meanwhile. A block device of before
// goes on by itself, and is looked at later: that would wait for those who read it, and they for the device here.
func (x *exported) resume() error {
	presenter, err := x.daemon.presenter(x.record.Export)
	f, later := presenter.(formerly)
	if later {
		former := f.formerly(x.record.Export)
		x.mu.Lock() // whoever asks for the status sees it by now
		x.presented, x.former = former, true
		x.mu.Unlock()
	}
	if err == nil && !later {
		err = x.present(presenter)
	}
	x.setError(err)
	x.uses.Add(1)
	if !x.daemon.spawn(func(context.Context) {
		defer x.uses.Done()
		x.reopen(presenter)
	}) {
		x.uses.Done()
	}
	return err
}

// reach notes how the device is reachable; x.mu is held.
func (x *exported) reach(p Presented) {
	x.presented, x.former = p, false
	x.reached.Do(func() { close(x.there) })
}

// reachable waits until the device can be reached, which after a restart it may not be at once.
func (x *exported) reachable(ctx context.Context) error {
	select {
	case <-x.there:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-x.ctx.Done():
		return fault.Errorf(fault.Unavailable, "export %s: is ending", x.record.Export.Name)
	}
}

func (x *exported) present(presenter Presenter) error {
	p, err := presenter.Present(x.record.Export, x.door)
	if err != nil {
		return err
	}
	x.mu.Lock()
	ended := x.ended
	if !ended {
		x.reach(p)
	}
	x.mu.Unlock()
	if ended {
		return p.Close()
	}
	return nil
}

// reopen goes on until the device is open and reachable, or the export is ended.
func (x *exported) reopen(presenter Presenter) {
	pause := reopenFirst
	for opened := false; ; {
		var err error
		if !opened {
			if err = x.openAgain(); err == nil {
				opened = true
			} else if c := fault.ClassOf(err); c == fault.Busy || c == fault.Corrupt || c == fault.Unsupported || c == fault.NotFound {
				x.door.refuse(err) // nothing that waiting for would help soon
			}
		}
		x.mu.Lock()
		reachable := x.presented != nil && !x.former || x.ended
		x.mu.Unlock()
		if opened && !reachable {
			if presenter == nil {
				return
			}
			err = x.present(presenter)
		}
		if x.ctx.Err() != nil {
			return
		}
		x.setError(err)
		if err == nil {
			return
		}
		x.daemon.config.Log.Warn("export cannot be served", "export", x.record.Export.Name, "error", err)
		select {
		case <-time.After(pause):
		case <-x.ctx.Done():
			return
		}
		pause = min(2*pause, reopenMost)
	}
}

func (x *exported) openAgain() error {
	if x.record.Export.Base != nil {
		return x.openBase(x.ctx, false) // the boot was before
	}
	if x.record.Export.Direct != nil {
		return x.openDirectAgain()
	}
	return x.openVolumeAgain(x.ctx)
}

func (x *exported) setError(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.err = err
}

// leave ends the export in this process; the next one opens it again.
func (x *exported) leave() error { return errors.Join(x.stopServing(true), x.closeDevice()) }

// stopServing ends everything that uses the device: first calls, then requests, which are answered. With next, the
// next process goes on with it.
func (x *exported) stopServing(next bool) error {
	x.mu.Lock()
	x.ended = true
	p := x.presented
	x.presented = nil
	x.mu.Unlock()
	x.cancel()
	x.uses.Wait()
	if p == nil {
		return nil
	}
	if l, ok := p.(leaving); ok && next {
		l.leave()
		return nil
	}
	return p.Close()
}

// shut ends the export; what is in a volume stays there.
func (x *exported) shut() error {
	return errors.Join(x.stopServing(false), x.closeDevice())
}

// use is the use of a volume by one call; ctx ends with the export too.
type use struct {
	ctx  context.Context
	done func()
}

// useVolume waits until the volume is open; nil for a base.
func (x *exported) useVolume(ctx context.Context) (cache.Volume, use, error) {
	x.mu.Lock()
	if x.ended {
		x.mu.Unlock()
		return nil, use{}, fault.Errorf(fault.Unavailable, "is ending")
	}
	x.uses.Add(1)
	x.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(x.ctx, cancel)
	done := func() {
		stop()
		cancel()
		x.uses.Done()
	}
	_, err := x.door.device(ctx)
	x.mu.Lock()
	volume := x.volume
	x.mu.Unlock()
	if err != nil || volume == nil {
		done()
		return nil, use{}, err
	}
	return volume, use{ctx, done}, nil
}

func (x *exported) status() ExportStatus {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := ExportStatus{Name: x.record.Export.Name, Path: x.record.Export.Path}
	if x.door != nil {
		s.Read, s.Written = x.door.read.Load(), x.door.written.Load()
	}
	if x.presented != nil {
		s.Device, s.Connections = x.presented.Device(), x.presented.Connections()
	}
	if x.volume != nil {
		v := x.volume.Status()
		s.Volume = &v
	}
	switch {
	case x.err != nil:
		s.Error = x.err.Error()
	case x.source != nil:
		s.Error = x.source.trouble.text()
	case x.reader != nil:
		s.Error = x.reader.trouble.text()
	}
	return s
}

func sorted[T any](m map[string]T) []T {
	list := make([]T, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, m[k])
	}
	return list
}

func pid() int { return os.Getpid() }

// errorf names the volume's image.
func (v VolumeSpec) errorf(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("image %d (%s): %w", v.Image.ID, v.Image.Name, err)
}
