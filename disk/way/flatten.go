package way

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/blockd"
	"hayloft/disk/export/nbd"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/internal/command"
)

// flatten copies what the machine wrote over what is below.
func (w *Way) flatten(ctx context.Context, path string, d diskRecord, partial bool, out repository.Writer, report func(done, total int64)) (*image.Index, error) {
	o, err := readOverlay(path)
	if err != nil {
		return nil, err
	}
	if !partial {
		return w.convert(ctx, node{"driver": "qcow2", "file": fileNode(path)}, o.Size, out, report)
	}
	// qemu-img cannot be told of another file below than the one in the header.
	if _, err := w.copyExport(ctx, *d.Export, out, func(done, _ int64) { report(done, o.Size) }); err != nil {
		return nil, err
	}
	if err := out.SetSize(o.Size); err != nil {
		return nil, err
	}
	if err := w.copyOwn(ctx, path, out); err != nil {
		return nil, err
	}
	return rescan(ctx, out, o.Size, report)
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

// copyExport copies what an export gives, with its index.
func (w *Way) copyExport(ctx context.Context, e blockd.Export, out repository.Writer, report func(done, total int64)) (*image.Index, error) {
	if err := w.exportAgain(ctx, e); err != nil {
		return nil, err
	}
	src, err := nbd.Dial(ctx, "unix", e.Path, "")
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if err := out.SetSize(src.Size()); err != nil {
		return nil, err
	}
	index, _, err := image.Scan(ctx, out, src, src.Size(), func(done int64) { report(done, src.Size()) })
	return index, err
}

// exportAgain makes sure that an export which should be there can be read.
func (w *Way) exportAgain(ctx context.Context, e blockd.Export) error {
	data, err := w.data()
	if err != nil {
		return err
	}
	if err := w.makeSockets(); err != nil {
		return err
	}
	return data.Export(ctx, e)
}

// convert has QEMU copy what is at the end of a way.
func (w *Way) convert(ctx context.Context, from node, size int64, out repository.Writer, report func(done, total int64)) (*image.Index, error) {
	local, ok := out.(repository.Local)
	if !ok {
		return nil, fault.Errorf(fault.Unsupported, "saving a disk needs a repository with local files")
	}
	text, err := json.Marshal(from)
	if err != nil {
		return nil, err
	}
	report(0, size)
	// -U: QEMU has the disk open while the machine is frozen.
	_, err = w.config.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"convert", "-q", "-U", "-W", "-S", "64k",
		"-O", "raw", "json:" + string(text), local.LocalPath()}})
	var e *command.Error
	if errors.As(err, &e) && strings.Contains(e.Stderr, "No space left") {
		err = fault.As(fault.OutOfSpace, err)
	}
	if err != nil {
		return nil, err
	}
	return rescan(ctx, out, size, report)
}

func rescan(ctx context.Context, out repository.Writer, size int64, report func(done, total int64)) (*image.Index, error) {
	index, _, err := image.Scan(ctx, nil, out, size, func(done int64) { report(done, size) })
	return index, err
}

// mapped is a range of a disk, as qemu-img map gives it.
type mapped struct {
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Depth  int    `json:"depth"` // 0: of the overlay itself
	Zero   bool   `json:"zero"`
	Data   bool   `json:"data"`
	Offset *int64 `json:"offset"` // in the file
}

// copyOwn copies what an overlay itself has.
func (w *Way) copyOwn(ctx context.Context, path string, out io.WriterAt) error {
	text, err := w.config.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"map", "-U", "--output=json", "-f", "qcow2", path}})
	if err != nil {
		return err
	}
	var ranges []mapped
	if err := json.Unmarshal(text, &ranges); err != nil {
		return fault.Errorf(fault.Corrupt, "qemu-img map %s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for _, m := range ranges {
		if m.Depth != 0 {
			continue
		}
		if m.Data && !m.Zero && m.Offset == nil {
			return fault.Errorf(fault.Unsupported, "overlay %s: compressed data at byte %d", path, m.Start)
		}
		for done := int64(0); done < m.Length; {
			p := buf[:min(int64(len(buf)), m.Length-done)]
			if clear(p); !m.Zero {
				if _, err := f.ReadAt(p, *m.Offset+done); err != nil {
					return err
				}
			}
			if _, err := out.WriteAt(p, m.Start+done); err != nil {
				return err
			}
			done += int64(len(p))
		}
	}
	return ctx.Err()
}
