package blockd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/disk/export/fuse"
	"hayloft/disk/export/loop"
)

const fuseState = "fuse.state" // in the state directory

// files is the one FUSE file system of a daemon, which is mounted when it is needed first. It implements Presenter:
// the path of an export becomes a symbolic link to its file.
//
// Who has a file or block device open when the process dies, or makes room for another build, waits for the next one.
type files struct {
	dir   string
	state string        // see fuse.Config
	wait  time.Duration // of requests, for the next process, see fuse.Config
	log   *slog.Logger

	ended context.Context // by ending
	end   context.CancelFunc

	mu     sync.Mutex
	system *fuse.FileSystem
	added  map[string]*pausable // by export
}

func newFiles(dir, state string, wait time.Duration, log *slog.Logger) *files {
	f := &files{dir: dir, state: state, wait: wait, log: log}
	f.ended, f.end = context.WithCancel(context.Background())
	return f
}

// restoring is what a Presenter has whose devices go on after the process that presented them.
type restoring interface {
	// prepare is called for each export of before a restart, then resume, before any Present.
	prepare(e Export, d export.Device) error
	resume() error
}

// formerly is what a Presenter has whose devices of before a restart cannot be looked at before they are served.
type formerly interface {
	// formerly is what was presented, so that it can be ended; it looks at nothing.
	formerly(e Export) Presented
}

// ending is what a Presenter has whose devices must not show that the process ends; it is called before anything does.
type ending interface{ ending() }

// leaving is what is Presented by one of these.
type leaving interface {
	// leave ends the use of the device here, and has requests wait for the next process.
	leave()
}

// whole is what a device has whose content may be a file as it is, one day.
type whole interface {
	// wholeFile is that file, opened for reading, nil when there is none yet.
	wholeFile() *os.File
}

const presentLimit = 2 * time.Minute // more than mounting and attaching have themselves

func (f *files) mounted() (*fuse.FileSystem, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.system == nil {
		ctx, cancel := context.WithTimeout(context.Background(), presentLimit)
		defer cancel()
		system, err := fuse.Mount(ctx, fuse.Config{Dir: f.dir, State: f.state, Unattended: f.wait, Log: f.log})
		if err != nil {
			return nil, err
		}
		f.system = system
	}
	return f.system, nil
}

// Close unmounts, unless there are files: they are for the next process.
func (f *files) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.system == nil || len(f.added) > 0 {
		return nil
	}
	err := f.system.Close()
	f.system = nil
	return errors.Join(err, os.Remove(f.dir))
}

func (f *files) prepare(e Export, d export.Device) error {
	_, _, err := f.add(e, d)
	return err
}

func (f *files) resume() error {
	f.mu.Lock()
	system := f.system
	f.mu.Unlock()
	if system == nil {
		if !exists(f.state) {
			return nil
		}
		var err error // of a process that left nothing else
		if system, err = f.mounted(); err != nil {
			return err
		}
	}
	return errors.Join(system.Resume(), f.Close())
}

// add makes the device a file of the file system, unless it is one already; undo, for when what follows fails, takes
// away only what is new: others may be in use.
func (f *files) add(e Export, d export.Device) (path string, undo func(), err error) {
	system, err := f.mounted()
	if err != nil {
		return "", nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.added[e.Name] != nil {
		return filepath.Join(f.dir, e.Name), func() {}, nil
	}
	o := fuse.Options{UID: e.UID, GID: e.GID}
	if w, ok := d.(whole); ok && d.ReadOnly() {
		o.Passthrough = w.wholeFile
	}
	p := newPausable(d)
	if path, err = system.Add(e.Name, p, o); err != nil {
		return "", nil, err
	}
	if f.added == nil {
		f.added = map[string]*pausable{}
	}
	f.added[e.Name] = p
	return path, func() { f.remove(e.Name) }, nil
}

func (f *files) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.added[name] != nil {
		f.system.Remove(name)
		delete(f.added, name)
	}
}

// ending has all requests that fail from now on wait for the next process: what ends with this one is no error of theirs.
func (f *files) ending() {
	f.end()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.added {
		p.end()
	}
}

func (f *files) pause(name string) {
	f.mu.Lock()
	p := f.added[name]
	f.mu.Unlock()
	if p != nil {
		p.pause()
	}
}

// Present implements Presenter.
func (f *files) Present(e Export, d export.Device) (Presented, error) {
	path, undo, err := f.add(e, d)
	if err != nil {
		return nil, err
	}
	if err := link(path, e.Path); err != nil {
		undo()
		return nil, err
	}
	return &presentedFile{files: f, name: e.Name, path: e.Path, to: path}, nil
}

// presentedFile is a link to a file or block device.
type presentedFile struct {
	files    *files
	name     string
	path, to string
	device   string
	detach   func() error // nil: nothing to detach
}

func (p *presentedFile) Device() string { return p.device }

// Connections is not known of files.
func (p *presentedFile) Connections() int { return 0 }

func (p *presentedFile) Close() error {
	var errs []error
	if to, err := os.Readlink(p.path); err == nil && to == p.to {
		errs = append(errs, os.Remove(p.path))
	}
	if p.detach != nil {
		errs = append(errs, p.detach())
	}
	p.files.remove(p.name)
	return errors.Join(errs...)
}

func (p *presentedFile) leave() { p.files.pause(p.name) }

// Abandon ends what a process that will have no successor left of the files of a state directory, and of the block
// devices on them: who waits for them gets an error. files is as in Config. fault.Busy when a process serves them.
func Abandon(ctx context.Context, stateDir, files string) error {
	if files == "" {
		files = filesOf(stateDir)
	}
	return fuse.Abandon(ctx, files, filepath.Join(stateDir, fuseState))
}

// link makes path a symbolic link, at once in place of one that is there. Something else there is fault.Exists.
func link(to, path string) error {
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSymlink == 0 {
		return fault.Errorf(fault.Exists, "%s is there and not a link", path)
	}
	temp := filepath.Join(filepath.Dir(path), ".new-"+filepath.Base(path))
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

// loops makes files of the file system block devices, for root alone. It implements Presenter.
type loops struct {
	files *files
	host  string // tells our devices from those of other daemons of this machine
}

func newLoops(f *files) loops {
	sum := sha256.Sum256([]byte(f.dir))
	return loops{f, hex.EncodeToString(sum[:4])}
}

const longestTag = 55

func (l loops) tag(name string) string {
	tag := "blockd-" + l.host + "-" + name
	if len(tag) > longestTag {
		sum := sha256.Sum256([]byte(name))
		tag = "blockd-" + l.host + "-" + hex.EncodeToString(sum[:16])
	}
	return tag
}

func (l loops) prepare(e Export, d export.Device) error { return l.files.prepare(e, d) }
func (l loops) resume() error                           { return nil } // that of files

// Present implements Presenter.
func (l loops) Present(e Export, d export.Device) (_ Presented, err error) {
	path, undo, err := l.files.add(e, d)
	if err != nil {
		return nil, err
	}
	device, err := l.attach(path, l.tag(e.Name), d.ReadOnly())
	if err != nil {
		undo()
		return nil, err
	}
	p := l.presented(e, device)
	if err := link(p.device, e.Path); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (l loops) formerly(e Export) Presented {
	device, _ := os.Readlink(e.Path) // the process may have died before it made the link
	return l.presented(e, device)
}

// presented is an export on a device, "" when that is not known.
func (l loops) presented(e Export, device string) *presentedFile {
	return &presentedFile{files: l.files, name: e.Name, path: e.Path, to: device, device: device, detach: func() error {
		ctx, cancel := context.WithTimeout(context.Background(), presentLimit)
		defer cancel()
		return detachAll(ctx, device, filepath.Join(l.files.dir, e.Name), l.tag(e.Name))
	}}
}

// detachAll detaches a device, "" when it is not known, and those of its tag that a process was about to attach when it was killed.
// The number that a link has kept, over a reboot of the host as it may be, can be of another's device by now: that stays.
func detachAll(ctx context.Context, device, path, tag string) error {
	if device != "" {
		if err := loop.Detach(ctx, device, path, tag); err != nil && !fault.Is(err, fault.WrongState) {
			return err
		}
	}
	for {
		found, err := loop.Find(ctx, path, tag)
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := loop.Detach(ctx, found, path, tag); err != nil {
			return err
		}
	}
}

// attach gives the device of before when the file below it lives, else a new one.
func (l loops) attach(path, tag string, readOnly bool) (string, error) {
	ctx, cancel := context.WithTimeout(l.files.ended, presentLimit)
	defer cancel()
	former, err := loop.Find(ctx, path, tag)
	if err == nil {
		if loop.StandsOn(ctx, former, path) {
			return former, nil
		}
		if err := loop.Detach(ctx, former, path, tag); err != nil {
			return "", fmt.Errorf("device of before, which has nothing below it: %w", err)
		}
	} else if !fault.Is(err, fault.NotFound) {
		return "", err
	}
	return loop.Attach(ctx, path, loop.Options{Tag: tag, ReadOnly: readOnly, DirectIO: true})
}
