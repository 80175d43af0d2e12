package way

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/export/nbd"
	"hayloft/disk/localstore"
	"hayloft/image"
	"hayloft/internal/command"
	"hayloft/internal/undo"
)

// bytesOf is something to be read that knows its holes.
type bytesOf interface {
	io.ReaderAt
	image.Extents
}

// holding is what a disk holds.
type holding struct {
	bytesOf
	size int64
	// own are the ranges that the machine may have written, where the rest is the image that the disk is a clone of.
	own   []image.Span
	clone bool
	check func(ctx context.Context) error // whether what was read is right; nil: it is
	opens undo.Stack
}

func (c *holding) Close() error { return c.opens.Run() }

// contentOf opens what a disk of a machine that is off, or stands still, holds.
func (w *Way) contentOf(ctx context.Context, r *record, d diskRecord) (_ *holding, err error) {
	c := &holding{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	path, err := w.ownPath(ctx, r.Dir, &d)
	if err != nil {
		return nil, err
	}
	switch {
	case d.Kernel != nil:
		if path, err = w.kernelPath(ctx, r, &d); err != nil {
			return nil, err
		}
		return c, c.openFile(path)
	case d.Kind == overlay:
		return c, w.openOverlay(ctx, c, path, d)
	case d.Export != nil:
		return c, w.openExport(ctx, c, d)
	case d.Cached:
		return nil, fault.Errorf(fault.WrongState, "is not exported")
	case d.Kind == whole && d.Mode != cache.None:
		if path, err = w.store.Path(d.Digest, localstore.Data); err != nil {
			return nil, err
		}
	case d.Kind == persistent || d.Kind == whole:
		if path, err = w.ownedPath(ctx, r.ID, d); err != nil {
			return nil, err
		}
	}
	if err := c.openFile(path); err != nil {
		return nil, err
	}
	if d.Kind == copied {
		c.compared()
	}
	return c, nil
}

// compared has a copy of an image, of which nobody knows what the machine wrote, compared with it.
func (c *holding) compared() { c.own, c.clone = []image.Span{{Length: c.size}}, true }

// openFile reads a raw file or block device.
func (c *holding) openFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	c.opens.Push(f.Close)
	c.size, err = lengthOf(f)
	c.bytesOf = sparseFile{f, c.size}
	return err
}

// openExport reads through the data path.
func (w *Way) openExport(ctx context.Context, c *holding, d diskRecord) error {
	if err := w.exportAgain(ctx, *d.Export); err != nil {
		return err
	}
	src, err := nbd.Dial(ctx, "unix", d.Export.Path, "")
	if err != nil {
		return err
	}
	c.opens.Push(src.Close)
	c.bytesOf, c.size = src, src.Size()
	return nil
}

// openOverlay reads what the machine wrote over what is below.
func (w *Way) openOverlay(ctx context.Context, c *holding, path string, d diskRecord) error {
	o, err := readOverlay(path)
	if err != nil {
		return err
	}
	ranges, err := w.mapOwn(ctx, path)
	if err != nil {
		return err
	}
	partial, err := w.isPartial(ctx, d)
	if err != nil {
		return err
	}
	switch {
	case d.Export != nil && (partial || d.Mode == cache.None):
		err = w.openExport(ctx, c, d)
	case partial:
		return fault.Errorf(fault.NotFound, "base %s is not on this host", d.Digest)
	default:
		err = c.openFile(o.Backing)
	}
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	c.opens.Push(f.Close)
	for _, m := range ranges {
		c.own = append(c.own, image.Span{Offset: m.Start, Length: m.Length})
	}
	c.bytesOf, c.size, c.clone = layered{own: ranges, file: f, below: c.bytesOf, belowSize: c.size, size: o.Size}, o.Size, true
	return nil
}

// mapped is a range of a disk, as qemu-img map gives it.
type mapped struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	// Present says that the overlay itself has it.
	Present bool   `json:"present"`
	Zero    bool   `json:"zero"`
	Offset  *int64 `json:"offset"` // in the file
}

// mapOwn lists the ranges that an overlay itself has, in order.
func (w *Way) mapOwn(ctx context.Context, path string) ([]mapped, error) {
	from, err := json.Marshal(node{"driver": "qcow2", "file": fileNode(path), "backing": nil})
	if err != nil {
		return nil, err
	}
	// -U: QEMU has the disk open while the machine is frozen.
	text, err := w.config.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"map", "-U", "--output=json", "json:" + string(from)}})
	if err != nil {
		return nil, err
	}
	var all, own []mapped
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fault.Errorf(fault.Corrupt, "qemu-img map %s: %w", path, err)
	}
	for _, m := range all {
		switch {
		case !m.Present:
		case !m.Zero && m.Offset == nil:
			return nil, fault.Errorf(fault.Unsupported, "overlay %s: compressed data at byte %d", path, m.Start)
		default:
			own = append(own, m)
		}
	}
	return own, nil
}

// node describes a way to bytes (QEMU's BlockdevOptions).
type node map[string]any

func fileNode(path string) node {
	driver := "file"
	if isBlock(path) {
		driver = "host_device"
	}
	return node{"driver": driver, "filename": path}
}

// layered is an overlay over what is below it.
type layered struct {
	own       []mapped
	file      *os.File
	below     bytesOf
	belowSize int64
	size      int64
}

// after is the first range of the overlay that ends behind offset.
func (l layered) after(offset int64) (mapped, bool) {
	i, _ := slices.BinarySearchFunc(l.own, offset, func(m mapped, at int64) int {
		if m.Start+m.Length <= at {
			return -1
		}
		return 1
	})
	if i == len(l.own) {
		return mapped{}, false
	}
	return l.own[i], true
}

// ReadAt implements io.ReaderAt.
func (l layered) ReadAt(p []byte, offset int64) (n int, err error) {
	if offset >= l.size {
		return 0, io.EOF
	}
	if rest := l.size - offset; rest < int64(len(p)) {
		p, err = p[:rest], io.EOF
	}
	for n < len(p) {
		at := offset + int64(n)
		part := p[n:]
		m, ok := l.after(at)
		switch {
		case ok && m.Start <= at:
			part = part[:min(int64(len(part)), m.Start+m.Length-at)]
			if m.Zero {
				clear(part)
			} else if _, err := l.file.ReadAt(part, *m.Offset+at-m.Start); err != nil {
				return n, err
			}
		default:
			if ok {
				part = part[:min(int64(len(part)), m.Start-at)]
			}
			if err := l.readBelow(part, at); err != nil {
				return n, err
			}
		}
		n += len(part)
	}
	return n, err
}

// readBelow reads what is below, and zeros behind its end.
func (l layered) readBelow(p []byte, at int64) error {
	there := p[:max(0, min(int64(len(p)), l.belowSize-at))]
	clear(p[len(there):])
	if len(there) == 0 {
		return nil
	}
	n, err := l.below.ReadAt(there, at)
	if n == len(there) {
		return nil
	}
	return err
}

// NextData implements image.Extents. Zeros of the overlay over data below it are taken for data.
func (l layered) NextData(offset int64) (start, end int64, err error) {
	own, ok := l.after(offset)
	for ok && own.Zero {
		own, ok = l.after(own.Start + own.Length)
	}
	if offset < l.belowSize {
		start, end, err = l.below.NextData(offset)
		if err != nil && err != io.EOF {
			return 0, 0, err
		}
	} else {
		err = io.EOF
	}
	if ok && (err == io.EOF || own.Start < start) {
		return max(offset, own.Start), own.Start + own.Length, nil
	}
	return start, end, err
}

// liveContent is what a hypervisor shows of a running machine's disk.
func liveContent(ctx context.Context, d diskRecord, live disk.Live) (_ *holding, err error) {
	c := &holding{check: live.Check}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	src, err := nbd.Dial(ctx, "unix", live.Socket, live.Export)
	if err != nil {
		return nil, err
	}
	c.opens.Push(src.Close)
	c.bytesOf, c.size = src, src.Size()
	if d.Kind == copied {
		c.compared()
	}
	if d.Kind != overlay {
		return c, nil
	}
	layers, err := nbd.Dialer{Depth: true}.Dial(ctx, "unix", live.Socket, live.Export)
	if err != nil {
		return nil, err
	}
	c.opens.Push(layers.Close)
	err = layers.Depths(ctx, 0, c.size, func(offset, length int64, depth int) bool {
		if depth > 0 && depth <= live.Own {
			c.own = append(c.own, image.Span{Offset: offset, Length: length})
		}
		return true
	})
	if fault.Is(err, fault.Unsupported) {
		return c, nil
	}
	c.clone = err == nil
	return c, err
}
