package way

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/image/archive"
	"hayloft/internal/command"
)

// Limits of what an archive unpacks to on a host; the local store's own limit comes on top.
const (
	maxTreeBytes   = 16 << 40
	maxTreeMembers = 4_000_000
)

// fetch brings an archive to this host and unpacks it, verified chunk by chunk. The index comes first: its own digest
// is the image's, so from then on nothing that the repository says is believed unchecked.
func (w *Way) fetch(ctx context.Context, img disk.Image, report func(done, total int64)) (path string, read int64, err error) {
	fail := func(err error) (string, int64, error) { return "", read, named(img, err) }
	repo, index, err := w.index(ctx, img)
	if err != nil {
		return fail(err)
	}
	read += int64(len(index.Marshal()))
	src, err := repo.Open(ctx, img.Source)
	if err != nil {
		return fail(err)
	}
	defer src.Close()
	if err := checkLength(img, index, src.Size()); err != nil {
		return fail(err)
	}
	w.config.Log.Info("fetch tree", "image", img.ID, "name", img.Name, "digest", img.Digest, "bytes", index.DataBytes())
	path, n, err := w.fetchTree(ctx, img, index, src, report)
	read += n
	if err != nil {
		return fail(err)
	}
	return path, read, nil
}

// named says in an error which image it is about, unless the data path did.
func named(img disk.Image, err error) error {
	label := fmt.Sprintf("image %d (%s)", img.ID, img.Name)
	if strings.HasPrefix(err.Error(), label) {
		return err
	}
	return fmt.Errorf("%s: %w", label, err)
}

func checkLength(img disk.Image, index *image.Index, size int64) error {
	if size != index.Length() {
		return fault.Errorf(fault.Corrupt, "object %s has %d bytes instead of %d", img.Source, size, index.Length())
	}
	return nil
}

// index opens the image's repository and reads its chunk index.
func (w *Way) index(ctx context.Context, img disk.Image) (repository.Repository, *image.Index, error) {
	repo, err := w.open(img.Repository)
	if err != nil {
		return nil, nil, err
	}
	index, err := w.readIndex(ctx, img)
	return repo, index, err
}

func (w *Way) readIndex(ctx context.Context, img disk.Image) (*image.Index, error) {
	if _, err := image.ParseDigest(img.Digest); err != nil {
		return nil, err
	}
	at := img.IndexAt()
	repo, err := w.open(at.Repository)
	if err != nil {
		return nil, err
	}
	src, err := repo.Open(ctx, at.Name)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	index, err := image.ReadIndex(src, src.Size(), img.Digest)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", at.Name, err)
	}
	return index, nil
}

// buildData copies the bytes of an archive into a file that is never committed.
func (w *Way) buildData(ctx context.Context, img disk.Image, index *image.Index, src repository.Source, report func(done, total int64)) (_ localstore.Builder, read int64, err error) {
	need := index.DataBytes()
	reservation, err := w.store.Reserve(ctx, "base", need, need)
	if err != nil {
		return nil, 0, err
	}
	defer reservation.Release() // by then it is on the disk, or gone
	b, err := w.store.Build(ctx, img.Digest, localstore.Data)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Abort())
		}
	}()
	if err := b.SetSize(index.Length()); err != nil {
		return nil, 0, err
	}
	read, err = index.CopyTo(ctx, b, src, func(done int64) { report(done, need) })
	if err != nil {
		return nil, read, fmt.Errorf("object %s: %w", img.Source, err)
	}
	return b, read, nil
}

// fetchTree unpacks an archive on the way in. Only verified chunks reach the decompressor.
func (w *Way) fetchTree(ctx context.Context, img disk.Image, index *image.Index, src repository.Source, report func(done, total int64)) (path string, read int64, err error) {
	reservation, err := w.store.Reserve(ctx, "tree", 0, 0)
	if err != nil {
		return "", 0, err
	}
	defer reservation.Release()
	b, err := w.store.Build(ctx, img.Digest, localstore.Tree)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, b.Abort()) }()
	format := image.Format(img.Format)
	switch {
	case format.IsTar():
		counted := &countingReader{r: index.Reader(src), total: index.Length(), report: report}
		_, err = archive.Unpack(ctx, bufio.NewReaderSize(counted, 1<<20), b.Path(), archive.Options{
			Name: img.Source, Compression: format.Compression(), Size: maxTreeBytes, Members: maxTreeMembers,
		}, func(size int64) error { return reservation.Grow(ctx, size) })
		read = counted.done
	case format == image.SquashFS:
		read, err = w.unsquash(ctx, img, index, src, b.Path(), report)
	default:
		err = fault.Errorf(fault.Unsupported, "format %s has no directory tree in it", img.Format)
	}
	if err != nil {
		return "", read, err
	}
	path, err = b.Commit(ctx, nil)
	return path, read, err
}

// unsquash copies the squashfs to the host for as long as it is unpacked.
func (w *Way) unsquash(ctx context.Context, img disk.Image, index *image.Index, src repository.Source, dir string, report func(done, total int64)) (int64, error) {
	packed, read, err := w.buildData(ctx, img, index, src, report)
	if err != nil {
		return read, err
	}
	defer packed.Abort()
	_, err = w.config.Runner.Run(ctx, command.Cmd{Name: "unsquashfs", Args: []string{"-q", "-n", "-f", "-d", dir, packed.Path()}})
	if err != nil {
		return read, err
	}
	return read, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeDevice != 0 {
			err = fault.Errorf(fault.Invalid, "squashfs %s: member %q: is a device node", img.Source, path[len(dir):])
		}
		return err
	})
}

type countingReader struct {
	r           io.Reader
	done, total int64
	report      func(done, total int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.report(c.done, c.total)
	return n, err
}
