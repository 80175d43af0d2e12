package blockd

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/repository"
	"hayloft/internal/durable"
	"hayloft/internal/undo"
	"hayloft/internal/waiting"
)

func checkVolume(name string, v VolumeSpec) error {
	fail := func(format string, args ...any) error {
		return fault.Errorf(fault.Invalid, "export "+name+": "+format, args...)
	}
	switch v.Mode {
	case cache.Around, cache.Through, cache.Back, cache.Offline:
	default:
		return fail("cache mode %q is none of AROUND, THRU, BACK, OFFLINE", v.Mode)
	}
	switch {
	case !filepath.IsAbs(v.Dir):
		return fail("directory %q is not absolute", v.Dir)
	case v.Size <= 0:
		return fail("size of %d bytes", v.Size)
	case v.Capacity < 0 || v.Load < 0:
		return fail("capacity of %d bytes, %d to load", v.Capacity, v.Load)
	case v.Host == "":
		return fail("no host to own image %d (%s)", v.Image.ID, v.Image.Name)
	}
	return repository.CheckName(v.Image.Source)
}

func (v VolumeSpec) owner() repository.Owner {
	return repository.Owner{Host: v.Host, Machine: v.Machine}
}

// MarkSuffix ends the name of the file beside a volume's directory that says with which generation of the image
// its files are right.
const MarkSuffix = ".mark"

func (d *Daemon) writable(v VolumeSpec) (repository.Writable, error) {
	repo, err := d.config.Open(v.Image.Repository)
	if err != nil {
		return nil, err
	}
	w, ok := repo.(repository.Writable)
	if !ok {
		return nil, fault.Errorf(fault.Unsupported, "datastore %d (%s): persistent images cannot be cached in mode %s", v.Image.Repository.ID, v.Image.Repository.Driver, v.Mode)
	}
	return w, nil
}

// openVolumeFirst opens a volume with its image, which must be reachable, and loads what is asked for.
func (x *exported) openVolumeFirst(ctx context.Context, repo repository.Writable) error {
	v := *x.record.Export.Volume
	src := newSource(repo, v.Image.Source, v.owner())
	x.mu.Lock()
	x.source = src
	x.mu.Unlock()
	if err := src.first(ctx); err != nil {
		return err
	}
	if src.Size() > v.Size {
		return fault.Errorf(fault.Invalid, "has %d bytes, more than the %d of the disk", src.Size(), v.Size)
	}
	x.record.Size, x.record.Generation, x.record.SourceSize = v.Size, src.generation, src.Size()
	if err := x.daemon.keepMark(ctx, v, src); err != nil {
		return err
	}
	volume, err := x.daemon.openVolume(ctx, x.record, src)
	if err != nil {
		return err
	}
	x.mu.Lock()
	x.volume = volume
	x.mu.Unlock()
	load := min(v.Load, v.Size)
	if v.Mode == cache.Offline {
		load = v.Size
	}
	if load > 0 {
		if err := volume.Load(ctx, load, nil); err != nil {
			return err
		}
	}
	x.makeDoor(false)
	x.door.open(volume)
	return nil
}

func (x *exported) hold(volume cache.Volume, src *source) {
	x.mu.Lock()
	x.volume, x.source = volume, src
	x.mu.Unlock()
	x.door.open(volume)
}

// keepSize remembers an export whose source has size bytes.
func (x *exported) keepSize(size int64) error {
	r := x.record
	r.SourceSize = size
	return x.daemon.exportsKept.put(r.Export.Name, r)
}

// keep remembers a new export.
func (x *exported) keep() error {
	if x.record.Export.Volume == nil {
		return x.daemon.exportsKept.put(x.record.Export.Name, x.record)
	}
	return x.source.remembered(x.keepSize)
}

// forget is the opposite of keep.
func (x *exported) forget() error {
	if x.source != nil {
		x.source.remember(nil)
	}
	return x.daemon.exportsKept.remove(x.record.Export.Name)
}

// takeImage owns the image, unless that was done.
func (d *Daemon) takeImage(ctx context.Context, v VolumeSpec, back *undo.Stack) (repository.Writable, error) {
	repo, err := d.writable(v)
	if err != nil {
		return nil, err
	}
	if _, err := repo.Marked(ctx, v.Image.Source); !fault.Is(err, fault.NotFound) {
		return repo, err
	}
	_, err = repo.Own(ctx, v.Image.Source, v.owner(), os.Geteuid(), os.Getegid())
	if err == nil || fault.Is(err, fault.Unavailable) { // it may have been done all the same
		back.Push(func() error { return repo.Disown(context.WithoutCancel(ctx), v.Image.Source, v.owner()) })
	}
	return repo, err
}

// openVolumeAgain opens a volume after a restart, without asking the repository for anything.
func (x *exported) openVolumeAgain(ctx context.Context) error {
	v := *x.record.Export.Volume
	repo, err := x.daemon.writable(v)
	if err != nil {
		return v.errorf(err)
	}
	src := newSource(repo, v.Image.Source, v.owner())
	src.generation = x.record.Generation
	src.size.Store(x.record.SourceSize)
	src.remember(x.keepSize)
	volume, err := x.daemon.openVolume(ctx, x.record, src)
	if err != nil {
		return v.errorf(errors.Join(err, src.Close()))
	}
	x.hold(volume, src)
	return nil
}

func (d *Daemon) openVolume(ctx context.Context, r exportRecord, src cache.Source) (cache.Volume, error) {
	v := *r.Export.Volume
	ctx, done := waiting.On(ctx, "the cache in %s", v.Dir)
	defer done()
	dir, err := storage.OS(v.Dir)
	if err != nil {
		return nil, err
	}
	name := "export " + r.Export.Name
	return d.config.Volume(ctx, cache.VolumeConfig{Name: name, Dir: dir, Source: src, Size: v.Size, Mode: v.Mode, Capacity: v.Capacity,
		Boot: d.config.Boot, Patience: d.config.Patience, Log: d.config.Log.With("export", r.Export.Name)})
}

// keepMark sees to it that the files in the volume's directory are those of the image as it was taken: when others
// may have written to it since, what is cached is not right any more, and what is not drained has nowhere to go.
func (d *Daemon) keepMark(ctx context.Context, v VolumeSpec, src *source) error {
	path := filepath.Clean(v.Dir) + MarkSuffix
	var former repository.Mark
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &former)
	}
	now := repository.Mark{Owner: src.owner, Generation: src.generation}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fault.Errorf(fault.Corrupt, "%s: %w", path, err)
	case former == now:
		return nil
	default:
		if err := d.dropStale(ctx, v, former, now); err != nil {
			return err
		}
	}
	if text, err = json.Marshal(now); err != nil {
		return err
	}
	return durable.WriteFile(path, text, 0o600)
}

func (d *Daemon) dropStale(ctx context.Context, v VolumeSpec, former, now repository.Mark) error {
	over := fault.Errorf(fault.Busy, "the image was given away since it was cached in %s: generation %d is over, it is %d now", v.Dir, former.Generation, now.Generation)
	volume, err := d.openVolume(ctx, exportRecord{Export: Export{Name: "with files of before", Volume: &v}}, refusing{over, v.Size})
	if err != nil {
		return errors.Join(over, err)
	}
	if n := volume.Status().Undrained; n > 0 {
		return errors.Join(over, fault.Errorf(fault.Busy, "%d bytes that were written here are not in it", n), volume.Close())
	}
	d.config.Log.Warn("cache of a former generation dropped", "dir", v.Dir, "generation", former.Generation)
	return volume.Discard(ctx)
}

// refusing is the source of a volume whose image is another's.
type refusing struct {
	err  error
	size int64
}

func (r refusing) Size() int64                           { return r.size }
func (r refusing) ReadAt([]byte, int64) (int, error)     { return 0, r.err }
func (r refusing) WriteAt([]byte, int64) (int, error)    { return 0, r.err }
func (r refusing) Truncate(int64) error                  { return r.err }
func (r refusing) Discard(int64, int64) error            { return r.err }
func (r refusing) Sync() error                           { return r.err }
func (r refusing) Undrained(context.Context, bool) error { return r.err }
func (r refusing) Close() error                          { return nil }

// discard ends the export and removes the volume's files, if the image has all of them.
func (x *exported) discard(ctx context.Context) error {
	if x.record.Export.Volume == nil {
		return x.shut()
	}
	if !x.hasEnded() {
		volume, use, err := x.useVolume(ctx)
		if err != nil {
			return err
		}
		undrained := volume.Status().Undrained
		use.done()
		if undrained > 0 {
			return fault.Errorf(fault.WrongState, "%d bytes are not in the repository yet", undrained)
		}
	}
	if err := x.stopServing(false); err != nil {
		return err
	}
	x.mu.Lock()
	volume := x.volume
	x.mu.Unlock()
	if volume == nil {
		return fault.Errorf(fault.WrongState, "was ended before; what its files hold is not known")
	}
	err := volume.Discard(ctx)
	if fault.Is(err, fault.WrongState) { // what came last was not drained
		return errors.Join(err, x.again())
	}
	if err != nil {
		return err
	}
	return errors.Join(x.closeDevice(), durable.Remove(filepath.Clean(x.record.Export.Volume.Dir)+MarkSuffix))
}

// again puts an export in the place of x, which serves no more, with the files of x.
func (x *exported) again() error {
	if err := x.closeDevice(); err != nil {
		return err
	}
	n := newExported(x.daemon, x.record)
	x.daemon.mu.Lock()
	x.daemon.exports[n.record.Export.Name] = n
	x.daemon.mu.Unlock()
	return n.resume()
}
