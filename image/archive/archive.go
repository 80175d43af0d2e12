// Package archive reads, unpacks and packs the tar archives that hold root file systems of containers. What it
// reads comes from strangers: every member is checked before anything of it is used.
package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"hayloft/cloud/fault"
)

// Compression of an archive.
type Compression string

// The compressions.
const (
	None Compression = ""
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// Options of Walk and Unpack.
type Options struct {
	Name        string // of the archive, in errors
	Compression Compression
	Size        int64 // limit of all members' sizes together, in bytes
	Members     int   // limit of their number
	// Own says that this program packed the archive from an overlay's upper directory: device nodes (whiteouts)
	// and overlayfs's own attributes are then taken, and refused otherwise.
	Own bool
}

// Member is one checked member.
type Member struct {
	*tar.Header
	Path string // clean and relative; "." is the root itself
	Link string // target of a hard link, clean and relative, a former member
}

// Summary of what a whole archive holds.
type Summary struct {
	Members int
	Bytes   int64 // sizes of all members together
}

const (
	maxPath    = 4096
	maxElement = 255
	blockSize  = 512
	// maxHeaders is how many bytes a member may take up beside its content, on average.
	maxHeaders = 16 << 10
)

// Walk reads r to its end and calls visit, which may be nil, for each member with its content. Errors name archive
// and member; fault.Corrupt is for truncated and damaged streams, fault.Invalid for members that are refused:
// `..`, absolute paths, device nodes, links to outside, paths through links, the same path twice, too much.
func Walk(ctx context.Context, r io.Reader, o Options, visit func(Member, io.Reader) error) (Summary, error) {
	plain, closeReader, err := decompress(r, o.Compression)
	if err != nil {
		return Summary{}, o.damaged(err)
	}
	defer closeReader()
	counted := &counter{ctx: ctx, r: plain, limit: o.Size + int64(o.Members)*maxHeaders}
	w := walk{Options: o, kinds: map[string]byte{".": tar.TypeDir}}
	archive := tar.NewReader(counted)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return w.sum, w.at(w.last, o.damaged(err))
		}
		m, err := w.check(header)
		if err != nil {
			return w.sum, w.at(header.Name, err)
		}
		w.last = header.Name
		if visit != nil {
			if err := visit(m, reading{archive}); err != nil {
				if d := (damage{}); errors.As(err, &d) {
					err = o.damaged(d.error)
				}
				return w.sum, w.at(header.Name, err)
			}
		}
	}
	if !counted.endsInZeros() {
		return w.sum, fault.Errorf(fault.Corrupt, "archive %s: truncated after member %q: it has no end mark", o.Name, w.last)
	}
	if _, err := io.Copy(io.Discard, counted); err != nil { // up to the checksum of the compression
		return w.sum, fmt.Errorf("archive %s: %w", o.Name, o.damaged(err))
	}
	return w.sum, nil
}

func decompress(r io.Reader, c Compression) (io.Reader, func(), error) {
	switch c {
	case None:
		return r, func() {}, nil
	case Gzip:
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(256<<20), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return nil, nil, fault.Errorf(fault.Unsupported, "compression %q", c)
}

// damage marks an error of reading the archive, as opposed to one of what is done with the content.
type damage struct{ error }

func (d damage) Unwrap() error { return d.error }

type reading struct{ r io.Reader }

func (r reading) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		err = damage{err}
	}
	return n, err
}

// damaged classifies an error of reading the archive.
func (o Options) damaged(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), fault.ClassOf(err) != fault.Internal:
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fault.Errorf(fault.Corrupt, "truncated")
	}
	return fault.Errorf(fault.Corrupt, "damaged: %w", err)
}

type walk struct {
	Options
	kinds map[string]byte // of every path so far, parents that were not named among them
	last  string
	sum   Summary
}

func (w *walk) at(member string, err error) error {
	if member == "" {
		return fmt.Errorf("archive %s: %w", w.Name, err)
	}
	return fmt.Errorf("archive %s: member %q: %w", w.Name, member, err)
}

func refuse(format string, args ...any) error { return fault.Errorf(fault.Invalid, format, args...) }

func (w *walk) check(h *tar.Header) (Member, error) {
	m := Member{Header: h}
	var err error
	if m.Path, err = cleanPath(h.Name); err != nil {
		return m, err
	}
	kind := h.Typeflag
	switch kind {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		kind, h.Typeflag = tar.TypeReg, tar.TypeReg
	case tar.TypeDir, tar.TypeSymlink, tar.TypeFifo:
	case tar.TypeLink:
		if m.Link, err = cleanPath(h.Linkname); err != nil {
			return m, fmt.Errorf("hard link to %q: %w", h.Linkname, err)
		}
		kind = w.kinds[m.Link]
		if kind != tar.TypeReg && kind != tar.TypeSymlink {
			return m, refuse("hard link to %q, which is not a file in the archive before it", h.Linkname)
		}
	case tar.TypeChar, tar.TypeBlock:
		if !w.Own {
			return m, refuse("is a device node")
		}
	default:
		return m, refuse("has the unknown type %q", h.Typeflag)
	}
	if h.Size < 0 {
		return m, refuse("has size %d", h.Size)
	}
	if h.Typeflag == tar.TypeReg {
		w.sum.Bytes += h.Size
	}
	w.sum.Members++
	if h.Size > w.Size || w.sum.Bytes > w.Size {
		return m, refuse("claims %d bytes, which makes more than the limit of %d for the archive", h.Size, w.Size)
	}
	if w.sum.Members > w.Members {
		return m, refuse("is one more than the limit of %d members", w.Members)
	}
	if !w.Own {
		for name := range h.PAXRecords {
			if attr, ok := strings.CutPrefix(name, xattrPrefix); ok && isOverlayAttr(attr) {
				return m, refuse("has the attribute %s, which is overlayfs's own", attr)
			}
		}
	}
	return m, w.place(m.Path, kind)
}

// place refuses paths whose parents are not directories, and paths that are taken.
func (w *walk) place(p string, kind byte) error {
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		k, known := w.kinds[dir]
		if k == tar.TypeDir {
			break
		}
		if k == tar.TypeSymlink {
			return refuse("would be written through the symbolic link %q", dir)
		}
		if known {
			return refuse("is below %q, which is not a directory", dir)
		}
		w.kinds[dir] = tar.TypeDir
	}
	if k, taken := w.kinds[p]; taken && (k != tar.TypeDir || kind != tar.TypeDir) {
		return refuse("is there twice")
	}
	w.kinds[p] = kind
	return nil
}

// cleanPath refuses what leads out.
func cleanPath(name string) (string, error) {
	switch {
	case name == "":
		return "", refuse("has no name")
	case len(name) > maxPath:
		return "", refuse("has a path of %d bytes, at most %d", len(name), maxPath)
	case strings.HasPrefix(name, "/"):
		return "", refuse("has an absolute path")
	case strings.ContainsRune(name, 0):
		return "", refuse("has a zero byte in its path")
	}
	for _, e := range strings.Split(name, "/") {
		if e == ".." {
			return "", refuse("has .. in its path")
		}
		if len(e) > maxElement {
			return "", refuse("has a name of %d bytes in its path, at most %d", len(e), maxElement)
		}
	}
	return path.Clean(name), nil
}

const xattrPrefix = "SCHILY.xattr."

func isOverlayAttr(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// counter bounds what a small compressed file may blow up to, ends with ctx, and knows how the stream ended.
type counter struct {
	ctx   context.Context
	r     io.Reader
	limit int64
	read  int64
	tail  [blockSize]byte // the last bytes read
}

func (c *counter) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.read += int64(n)
	if n >= blockSize {
		copy(c.tail[:], p[n-blockSize:n])
	} else {
		copy(c.tail[:], c.tail[n:])
		copy(c.tail[blockSize-n:], p[:n])
	}
	if c.read > c.limit {
		return n, refuse("unpacks to more than the limit of %d bytes", c.limit)
	}
	return n, err
}

func (c *counter) endsInZeros() bool { return c.read >= blockSize && c.tail == [blockSize]byte{} }
