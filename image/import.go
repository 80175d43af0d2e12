package image

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
	"hayloft/image/archive"
	"hayloft/internal/command"
)

const (
	defaultSize    = 16 << 40
	defaultMembers = 4_000_000
	defaultStall   = time.Minute
)

func (l Limits) withDefaults() Limits {
	return Limits{
		Size:    cmp.Or(l.Size, defaultSize),
		Members: cmp.Or(l.Members, defaultMembers),
		Stall:   cmp.Or(l.Stall, defaultStall),
	}
}

// Cloner is what a Writer has that can take the blocks of a local file without copying; fault.Unsupported when
// these two file systems cannot.
type Cloner interface{ CloneFrom(src *os.File) error }

// Import takes an image in: see ImportOptions. Disk formats become sparse raw; archives and squashfs are read to
// their end and stored as they are. The object gets its chunk index beside it, under IndexName. On any error, and
// when ctx ends, nothing of it is left.
//
// Errors name image and source. fault.Invalid: what is refused for safety or does not fit the type;
// fault.Corrupt: truncated, damaged, digest mismatch; fault.Exists and fault.Busy: the name; fault.OutOfSpace;
// fault.Unsupported: formats that cannot be taken; fault.Unavailable: URL or repository.
func Import(ctx context.Context, o ImportOptions) (Info, error) {
	info, err := runImport(ctx, o)
	if err != nil {
		return Info{}, fmt.Errorf("image %s: import of %s: %w", o.Name, o.Source, err)
	}
	return info, nil
}

func runImport(ctx context.Context, o ImportOptions) (Info, error) {
	expected, err := parseExpected(o.ExpectedDigest)
	if err != nil {
		return Info{}, err
	}
	o.Limits = o.Limits.withDefaults()
	if o.Runner == nil {
		o.Runner = command.Exec{}
	}
	return store(ctx, o.To, o.Name, func(w Writer) (*Index, Info, error) {
		src, err := openOrigin(ctx, o, scratchOf(w))
		if err != nil {
			return nil, Info{}, err
		}
		defer src.Close()
		format, err := chooseFormat(src, o)
		if err != nil {
			return nil, Info{}, err
		}
		group, groupCtx := errgroup.WithContext(ctx)
		var sum string
		if expected != nil {
			group.Go(func() (err error) { sum, err = expected.sum(groupCtx, src); return err })
		}
		var (
			index *Index
			info  Info
		)
		group.Go(func() (err error) { index, info, err = take(groupCtx, o, format, src, w); return err })
		if err := group.Wait(); err != nil {
			return nil, Info{}, err
		}
		if expected != nil && sum != expected.hex && index.Digest() != expected.text {
			return nil, Info{}, fault.Errorf(fault.Corrupt, "digest mismatch: it is %s:%s, expected %s", expected.algorithm, sum, expected.text)
		}
		return index, info, nil
	})
}

// scratchOf is where to fetch to: beside the object if that is a file here.
func scratchOf(w Writer) string {
	if l, ok := w.(Local); ok {
		return filepath.Dir(l.LocalPath())
	}
	return scratch()
}

// scratch is where large files are made for a while: not where /tmp is memory.
func scratch() string {
	if os.Getenv("TMPDIR") == "" {
		if fi, err := os.Stat("/var/tmp"); err == nil && fi.IsDir() {
			return "/var/tmp"
		}
	}
	return os.TempDir()
}

// store lets fill write object name, and puts its chunk index beside it. The index comes first: whoever sees the
// object finds its index. The name is held meanwhile, so an index without object is one that a crash left.
func store(ctx context.Context, to Target, name string, fill func(Writer) (*Index, Info, error)) (Info, error) {
	if err := CheckImageName(name); err != nil {
		return Info{}, err
	}
	w, err := to.Create(ctx, name)
	if err != nil {
		return Info{}, err
	}
	index, info, err := fill(w)
	if err != nil {
		return Info{}, errors.Join(err, w.Abort())
	}
	if err := Publish(ctx, to, name, w, index); err != nil {
		return Info{}, err
	}
	info.Digest = index.Digest()
	return info, nil
}

// Publish commits a written object together with its index, or aborts both. A Commit whose caller has left, as ctx ended, may
// succeed all the same: then both stay.
func Publish(ctx context.Context, to Target, name string, w Writer, index *Index) error {
	if err := writeIndex(ctx, to, name, index); err != nil {
		return errors.Join(err, w.Abort())
	}
	err := w.Commit(ctx)
	if err == nil {
		return nil
	}
	return errors.Join(err, w.Abort(), withdrawIndex(context.WithoutCancel(ctx), to, name))
}

// writeIndex puts an index beside an object that is being written, in the place of one that a crash left.
func writeIndex(ctx context.Context, to Target, name string, index *Index) error {
	beside, err := to.Create(ctx, IndexName(name))
	if fault.Is(err, fault.Exists) {
		if err = to.Delete(ctx, IndexName(name)); err == nil {
			beside, err = to.Create(ctx, IndexName(name))
		}
	}
	if err != nil {
		return err
	}
	if _, err = beside.WriteAt(index.Marshal(), 0); err == nil {
		err = beside.Commit(ctx)
	}
	if err != nil { // of a Commit, it may be there
		return errors.Join(err, beside.Abort(), deleteIndex(context.WithoutCancel(ctx), to, name))
	}
	return nil
}

func deleteIndex(ctx context.Context, to Target, name string) error {
	if err := to.Delete(ctx, IndexName(name)); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// withdrawIndex takes back the index of an object whose writer has ended, unless the object is there. It holds the name
// meanwhile, so that it is not the index of the next writer.
func withdrawIndex(ctx context.Context, to Target, name string) error {
	held, err := to.Create(ctx, name)
	if fault.Is(err, fault.Exists) || fault.Is(err, fault.Busy) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(deleteIndex(ctx, to, name), held.Abort())
}

// chooseFormat decides by content; type and hint may only narrow it.
func chooseFormat(src *origin, o ImportOptions) (Format, error) {
	if src.size == 0 {
		return "", fault.Errorf(fault.Corrupt, "is empty")
	}
	switch o.Type {
	case Kernel, Ramdisk, Context:
		return Raw, nil
	case OS, Datablock, CDROM:
	default:
		return "", fault.Errorf(fault.Invalid, "unknown image type %q", o.Type)
	}
	found, err := Detect(src)
	if err != nil {
		return "", err
	}
	switch {
	case o.Format == Raw:
		return Raw, nil
	case o.Format != "" && o.Format != found:
		return "", fault.Errorf(fault.Invalid, "is %s by its content, not %s", found, o.Format)
	case found == Gzip || found == Zstd || found == XZ:
		return "", fault.Errorf(fault.Unsupported, "is compressed (%s) and not an archive that can be unpacked: decompress it first", found)
	case o.Type == CDROM && found.IsTree():
		return "", fault.Errorf(fault.Invalid, "is %s, which is no CDROM", found)
	case found == ISO:
		return Raw, nil
	}
	return found, nil
}

// take brings the origin's bytes into w in the form they are stored in.
func take(ctx context.Context, o ImportOptions, format Format, src *origin, w Writer) (*Index, Info, error) {
	if format.foreign() {
		return convert(ctx, o, format, src, w)
	}
	if src.size > o.Limits.Size {
		return nil, Info{}, fault.Errorf(fault.Invalid, "%d bytes are more than the limit of %d", src.size, o.Limits.Size)
	}
	report := func(int64) {}
	total := src.size
	if format.IsTree() {
		total *= 2 // copied, then read through
	}
	if o.Report != nil {
		report = func(done int64) { o.Report(done, total) }
	}
	index, err := copyIn(ctx, w, src, report)
	if err != nil {
		return nil, Info{}, err
	}
	info := Info{Format: format, Size: src.size, ObjectSize: src.size, StoredBytes: index.DataBytes()}
	switch {
	case format.IsTar():
		content := bufio.NewReaderSize(io.NewSectionReader(w, 0, src.size), batchSize)
		sum, err := archive.Walk(ctx, watch(content, func(n int64) { report(src.size + n) }), archive.Options{
			Name: src.name, Compression: format.Compression(), Size: o.Limits.Size, Members: o.Limits.Members,
		}, nil)
		if err != nil {
			return nil, Info{}, err
		}
		info.Size = sum.Bytes
	case format == SquashFS:
		if info.Size, err = checkSquashFS(ctx, o, src); err != nil {
			return nil, Info{}, err
		}
	}
	return index, info, nil
}

// copyIn copies and indexes in one pass, or shares blocks where the file system can and indexes those.
func copyIn(ctx context.Context, w Writer, src *origin, report func(int64)) (*Index, error) {
	if c, ok := w.(Cloner); ok {
		err := c.CloneFrom(src.File)
		if err == nil {
			index, _, err := Scan(ctx, nil, w, src.size, report)
			return index, err
		}
		if !fault.Is(err, fault.Unsupported) {
			return nil, err
		}
	}
	if err := w.SetSize(src.size); err != nil {
		return nil, err
	}
	index, _, err := Scan(ctx, w, src, src.size, report)
	return index, err
}

// watch reports how far r was read, every megabyte.
func watch(r io.Reader, report func(int64)) io.Reader {
	var done, told int64
	return readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		if done += int64(n); done-told >= batchSize || err == io.EOF {
			told = done
			report(done)
		}
		return n, err
	})
}

// Compression of a tar format.
func (f Format) Compression() archive.Compression {
	switch f {
	case TarGzip:
		return archive.Gzip
	case TarZstd:
		return archive.Zstd
	}
	return archive.None
}

// Create makes an empty image of zeros, a DATABLOCK. Errors as those of Import.
func Create(ctx context.Context, o CreateOptions) (Info, error) {
	if o.Size <= 0 || o.Size > defaultSize {
		return Info{}, fault.Errorf(fault.Invalid, "image %s: size of %d bytes: must be from 1 to %d", o.Name, o.Size, int64(defaultSize))
	}
	info, err := store(ctx, o.To, o.Name, func(w Writer) (*Index, Info, error) {
		index, err := NewIndex(o.Size, ChunkSize)
		if err == nil {
			err = w.SetSize(o.Size)
		}
		return index, Info{Format: Raw, Size: o.Size, ObjectSize: o.Size}, err
	})
	if err != nil {
		return Info{}, fmt.Errorf("image %s: %w", o.Name, err)
	}
	return info, nil
}
