package way

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/image/archive"
)

// SaveAs implements disk.Way: a disk becomes a sparse raw object, a directory tree a tar.gz.
func (w *Way) SaveAs(ctx context.Context, machine int, dir string, spec disk.Spec, to disk.Repository, name string, report func(disk.Progress)) (disk.Saved, error) {
	unlock, err := w.lock(ctx, machineTurn(machine))
	if err != nil {
		return disk.Saved{}, err
	}
	defer unlock()
	return w.save(ctx, machine, spec, nil, to, name, report)
}

// SaveLive implements disk.LiveSaver. Nothing else is kept waiting by it: the disk that it reads is of the past.
func (w *Way) SaveLive(ctx context.Context, machine int, dir string, spec disk.Spec, live disk.Live, to disk.Repository, name string, report func(disk.Progress)) (disk.Saved, error) {
	return w.save(ctx, machine, spec, &live, to, name, report)
}

func (w *Way) save(ctx context.Context, machine int, spec disk.Spec, live *disk.Live, to disk.Repository, name string, report func(disk.Progress)) (disk.Saved, error) {
	saved, err := w.saveAs(ctx, machine, spec, live, to, name, func(done, total int64) {
		if report != nil {
			report(disk.Progress{Step: "save " + name, Done: done, Total: total})
		}
	})
	if err != nil {
		return disk.Saved{}, fmt.Errorf("machine %d: disk %d: save as %s: %w", machine, spec.ID, name, err)
	}
	w.config.Log.Info("disk saved", "machine", machine, "disk", spec.ID, "object", name, "digest", saved.Digest, "bytes", saved.Size,
		"moved", saved.Moved, "clone", saved.Clone)
	return saved, nil
}

// SavedAs is the result of a SaveAs that was done, for one who did not live to hear it. Errors: fault.NotFound
// when there is no such object.
func (w *Way) SavedAs(ctx context.Context, spec disk.Spec, from disk.Repository, name string) (disk.Saved, error) {
	fail := func(err error) (disk.Saved, error) {
		return disk.Saved{}, fmt.Errorf("disk %d: saved as %s: %w", spec.ID, name, err)
	}
	repo, err := w.open(from)
	if err != nil {
		return fail(err)
	}
	info, err := repo.Stat(ctx, name)
	if err != nil {
		return fail(err)
	}
	src, err := repo.Open(ctx, image.IndexName(name))
	if err != nil {
		return fail(err)
	}
	defer src.Close()
	index, err := image.ReadIndex(src, src.Size(), "")
	if err != nil {
		return fail(err)
	}
	if info.Size != index.Length() {
		return fail(fault.Errorf(fault.Corrupt, "%d bytes instead of %d", info.Size, index.Length()))
	}
	format := image.Raw
	if spec.Tree {
		format = image.TarGzip
	}
	saved := disk.Saved{Digest: index.Digest(), Size: index.Length(), Format: string(format)}
	if saved.Clone, err = dependence(ctx, repo, name); err != nil {
		return fail(err)
	}
	return saved, nil
}

func (w *Way) saveAs(ctx context.Context, machine int, spec disk.Spec, live *disk.Live, to disk.Repository, name string, report func(done, total int64)) (_ disk.Saved, err error) {
	if err := image.CheckImageName(name); err != nil {
		return disk.Saved{}, err
	}
	r, err := w.recordOf(ctx, machine)
	if err != nil {
		return disk.Saved{}, err
	}
	d := r.disk(spec.ID)
	if d == nil {
		return disk.Saved{}, fault.Errorf(fault.NotFound, "no such disk")
	}
	repo, err := w.open(to)
	if err != nil {
		return disk.Saved{}, err
	}
	if d.Kind == tree {
		return w.saveTree(ctx, repo, r.Dir, *d, name)
	}
	var c *holding
	if live != nil {
		c, err = liveContent(ctx, *d, *live)
	} else {
		c, err = w.contentOf(ctx, r, *d)
	}
	if err != nil {
		return disk.Saved{}, err
	}
	defer c.Close()
	saved, err := w.saveChanges(ctx, repo, c, spec, to, name, report)
	if !fault.Is(err, fault.Unsupported) {
		return saved, err
	}
	return saveWhole(ctx, repo, c, name, report)
}

// saveWhole copies all that a disk holds.
func saveWhole(ctx context.Context, repo repository.Repository, c *holding, name string, report func(done, total int64)) (disk.Saved, error) {
	out, err := repo.Create(ctx, name)
	if err != nil {
		return disk.Saved{}, err
	}
	var (
		index *image.Index
		moved int64
	)
	if err = out.SetSize(c.size); err == nil {
		index, moved, err = image.Scan(ctx, out, c, c.size, func(done int64) { report(done, c.size) })
	}
	return publish(ctx, repo, c, name, out, index, moved, err)
}

// saveChanges has the storage begin the object as a clone of the image that the disk is a clone of, and moves what the machine
// changed. fault.Unsupported when that cannot be done.
func (w *Way) saveChanges(ctx context.Context, repo repository.Repository, c *holding, spec disk.Spec, to disk.Repository, name string, report func(done, total int64)) (disk.Saved, error) {
	cloner, ok := repo.(repository.Cloner)
	img := spec.Image
	if !ok || !c.clone || img == nil || img.Persistent || !sameRepository(img.Repository, to) {
		return disk.Saved{}, fault.Errorf(fault.Unsupported, "not a clone of an image in datastore %d", to.ID)
	}
	before, err := w.baseIndex(ctx, *img)
	if err != nil {
		return disk.Saved{}, fault.As(fault.Unsupported, err) // the image is gone: all of it is copied
	}
	out, kind, err := cloner.CreateFrom(ctx, img.Source, name)
	if fault.Is(err, fault.NotFound) {
		return disk.Saved{}, fault.As(fault.Unsupported, err)
	}
	if err != nil {
		return disk.Saved{}, err
	}
	var total int64
	for _, s := range c.own {
		total += s.Length
	}
	var (
		index *image.Index
		moved int64
	)
	if c.size > before.Length() {
		err = out.SetSize(c.size)
	}
	if err == nil {
		index, moved, err = image.Change(ctx, out, before, c, c.size, c.own, func(done int64) { report(min(done, total), total) })
	}
	saved, err := publish(ctx, repo, c, name, out, index, moved, err)
	saved.Clone = string(kind)
	if err == nil && kind.Depends() && c.size > before.Length() { // what was made longer may stand alone
		if depends, unknown := dependence(ctx, repo, name); unknown == nil && depends == "" {
			saved.Clone = string(repository.Copied)
		}
	}
	return saved, err
}

// dependence is the kind of clone that an object is when it depends on another, else "".
func dependence(ctx context.Context, repo repository.Repository, name string) (string, error) {
	cloner, ok := repo.(repository.Cloner)
	if !ok {
		return "", nil
	}
	parent, err := cloner.Parent(ctx, name)
	if d, ok := repo.(repository.Depender); ok && err == nil && parent != "" {
		return string(d.DependentKind()), nil
	}
	return "", err
}

// sameRepository reports whether an image is where it is to be cloned.
func sameRepository(a, b disk.Repository) bool {
	return a.ID == b.ID && driverName(a) == driverName(b) && a.Path == b.Path
}

// baseIndex is the index of an image: the one on this host, or else that of its repository.
func (w *Way) baseIndex(ctx context.Context, img disk.Image) (*image.Index, error) {
	if path, err := w.store.Path(img.Digest, localstore.Data); err == nil {
		if text, err := os.ReadFile(filepath.Join(filepath.Dir(path), localstore.IndexFile)); err == nil {
			if index, err := image.UnmarshalIndex(text); err == nil && index.Digest() == img.Digest {
				return index, nil
			}
		}
	}
	return w.readIndex(ctx, img)
}

// publish ends an object that has been written, or takes it back.
func publish(ctx context.Context, repo repository.Repository, c *holding, name string, out repository.Writer, index *image.Index, moved int64, err error) (disk.Saved, error) {
	if err == nil && c.check != nil {
		err = c.check(ctx)
	}
	if err != nil {
		return disk.Saved{}, errors.Join(err, out.Abort())
	}
	if err := image.Publish(ctx, repo, name, out, index); err != nil {
		return disk.Saved{}, err
	}
	return disk.Saved{Digest: index.Digest(), Size: index.Length(), Format: string(image.Raw), Moved: moved}, nil
}

// saveTree packs what the container sees.
func (w *Way) saveTree(ctx context.Context, repo repository.Repository, dir string, d diskRecord, name string) (disk.Saved, error) {
	lower, err := w.store.Find(ctx, d.Digest, localstore.Tree)
	if err == nil && lower == "" {
		err = fault.Errorf(fault.NotFound, "base %s is not on this host", d.Digest)
	}
	if err != nil {
		return disk.Saved{}, err
	}
	out, err := repo.Create(ctx, name)
	if err != nil {
		return disk.Saved{}, err
	}
	index, err := w.packTree(ctx, lower, dir, d, out)
	if err != nil {
		return disk.Saved{}, errors.Join(err, out.Abort())
	}
	if err := image.Publish(ctx, repo, name, out, index); err != nil {
		return disk.Saved{}, err
	}
	return disk.Saved{Digest: index.Digest(), Size: index.Length(), Format: string(image.TarGzip), Moved: index.Length()}, nil
}

func (w *Way) packTree(ctx context.Context, lower, dir string, d diskRecord, out repository.Writer) (*image.Index, error) {
	upper := filepath.Join(diskPath(dir, d.ID), "upper")
	if d.ReadOnly {
		upper = ""
	}
	stream := &appender{w: out}
	packed, err := gzip.NewWriterLevel(stream, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	skipped, err := archive.Pack(ctx, packed, lower, upper)
	if err = errors.Join(err, packed.Close()); err != nil {
		return nil, err
	}
	if len(skipped) > 0 {
		w.config.Log.Info("device nodes and sockets not saved", "disk", d.ID, "paths", skipped)
	}
	index, _, err := image.Scan(ctx, nil, out, stream.offset, nil)
	return index, err
}

// appender writes an object front to back, in pieces worth a system call.
type appender struct {
	w      io.WriterAt
	offset int64
}

func (a *appender) Write(p []byte) (int, error) {
	n, err := a.w.WriteAt(p, a.offset)
	a.offset += int64(n)
	return n, err
}

// sparseFile knows its holes.
type sparseFile struct {
	*os.File
	size int64
}

// NextData implements image.Extents.
func (f sparseFile) NextData(offset int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO), err == nil && start >= f.size:
		return 0, 0, io.EOF
	case errors.Is(err, unix.EINVAL):
		return offset, f.size, nil
	case err != nil:
		return 0, 0, err
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	return start, min(end, f.size), err
}
