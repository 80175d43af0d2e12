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
	"hayloft/disk/cache"
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
	saved, err := w.saveAs(ctx, machine, spec.ID, to, name, func(done, total int64) {
		if report != nil {
			report(disk.Progress{Step: "save " + name, Done: done, Total: total})
		}
	})
	if err != nil {
		return disk.Saved{}, fmt.Errorf("machine %d: disk %d: save as %s: %w", machine, spec.ID, name, err)
	}
	w.config.Log.Info("disk saved", "machine", machine, "disk", spec.ID, "object", name, "digest", saved.Digest)
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
	return disk.Saved{Digest: index.Digest(), Size: index.Length(), Format: string(format)}, nil
}

func (w *Way) saveAs(ctx context.Context, machine, id int, to disk.Repository, name string, report func(done, total int64)) (_ disk.Saved, err error) {
	if err := image.CheckImageName(name); err != nil {
		return disk.Saved{}, err
	}
	r, err := w.recordOf(ctx, machine)
	if err != nil {
		return disk.Saved{}, err
	}
	d := r.disk(id)
	if d == nil {
		return disk.Saved{}, fault.Errorf(fault.NotFound, "no such disk")
	}
	repo, err := w.open(to)
	if err != nil {
		return disk.Saved{}, err
	}
	out, err := repo.Create(ctx, name)
	if err != nil {
		return disk.Saved{}, err
	}
	var index *image.Index
	format := image.Raw
	if d.Kind == tree {
		format = image.TarGzip
		index, err = w.saveTree(ctx, r.Dir, *d, out)
	} else {
		index, err = w.saveDisk(ctx, r, *d, out, report)
	}
	if err != nil {
		return disk.Saved{}, errors.Join(err, out.Abort())
	}
	if err := image.Publish(ctx, repo, name, out, index); err != nil {
		return disk.Saved{}, err
	}
	return disk.Saved{Digest: index.Digest(), Size: index.Length(), Format: string(format)}, nil
}

// saveDisk flattens: what the machine wrote over what the base has. What the data path has is read through it.
func (w *Way) saveDisk(ctx context.Context, r *record, d diskRecord, out repository.Writer, report func(done, total int64)) (*image.Index, error) {
	path, err := w.ownPath(ctx, r.Dir, &d)
	if err != nil {
		return nil, err
	}
	switch {
	case d.Kernel != nil:
		if path, err = w.kernelPath(ctx, r, &d); err != nil {
			return nil, err
		}
	case d.Cached:
		if d.Export == nil {
			return nil, fault.Errorf(fault.WrongState, "is not exported")
		}
		return w.copyExport(ctx, *d.Export, out, report)
	case d.Kind == overlay || d.Kind == whole && d.Mode != cache.None:
		partial, err := w.isPartial(ctx, d)
		if err != nil {
			return nil, err
		}
		if partial && d.Export == nil {
			return nil, fault.Errorf(fault.NotFound, "base %s is not on this host", d.Digest)
		}
		if d.Kind == overlay {
			return w.flatten(ctx, path, d, partial, out, report)
		}
		if partial {
			return w.copyExport(ctx, *d.Export, out, report)
		}
		if path, err = w.store.Path(d.Digest, localstore.Data); err != nil {
			return nil, err
		}
	case d.Kind == persistent || d.Kind == whole:
		if path, err = w.ownedPath(ctx, r.ID, d); err != nil {
			return nil, err
		}
	}
	return copyFile(ctx, path, out, report)
}

// copyFile copies a local raw file sparsely, with its index.
func copyFile(ctx context.Context, path string, out repository.Writer, report func(done, total int64)) (*image.Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := lengthOf(f)
	if err != nil {
		return nil, err
	}
	if err := out.SetSize(size); err != nil {
		return nil, err
	}
	index, _, err := image.Scan(ctx, out, sparseFile{f, size}, size, func(done int64) { report(done, size) })
	return index, err
}

// saveTree packs what the container sees.
func (w *Way) saveTree(ctx context.Context, dir string, d diskRecord, out repository.Writer) (*image.Index, error) {
	lower, err := w.store.Find(ctx, d.Digest, localstore.Tree)
	if err == nil && lower == "" {
		err = fault.Errorf(fault.NotFound, "base %s is not on this host", d.Digest)
	}
	if err != nil {
		return nil, err
	}
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
