package way

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"

	"hayloft/disk/fastcopy"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/image/qcow2"
	"hayloft/internal/command"
)

// putVolume copies what a machine has in a volume into the repository, as the file that it would be on a host without
// volumes.
func (w *Way) putVolume(ctx context.Context, repo repository.Repository, dir string, d *diskRecord, name string) (err error) {
	path, err := w.ownPath(ctx, dir, d)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := lengthOf(f)
	if err == nil && d.Kind == overlay {
		size, err = w.endOf(ctx, path, size)
	}
	if err != nil {
		return err
	}
	out, err := repo.Create(ctx, name)
	if err != nil {
		return err
	}
	if err = out.SetSize(size); err == nil {
		_, _, err = image.Scan(ctx, out, io.NewSectionReader(f, 0, size), size, nil)
	}
	if err == nil {
		err = out.Commit(ctx)
	}
	if err != nil {
		return errors.Join(err, out.Abort())
	}
	return nil
}

// endOf is where a qcow2 in a volume of size bytes ends.
func (w *Way) endOf(ctx context.Context, path string, size int64) (int64, error) {
	text, err := w.config.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"check", "--output=json", "-f", "qcow2", path}})
	var failed *command.Error
	if errors.As(err, &failed) && failed.Status == leaks {
		err = nil
	}
	if err != nil {
		return 0, err
	}
	var checked struct {
		End int64 `json:"image-end-offset"`
	}
	if err := json.Unmarshal(text, &checked); err != nil || checked.End <= 0 || checked.End > size {
		return size, nil // all of it, then
	}
	return checked.End, nil
}

// leaks is the status of a qemu-img check that found clusters which nobody uses, and nothing worse.
const leaks = 3

// bringVolume copies a file of a stash into the disk's volume.
func (p *preparation) bringVolume(ctx context.Context, src repository.Source, d *diskRecord, report func(done, total int64)) error {
	size := max(d.Size, src.Size())
	if d.Kind == overlay {
		o, err := qcow2.Read(src)
		if err != nil {
			return err
		}
		d.Size = max(d.Size, o.Size) // grown elsewhere
		size = max(qcow2.FullSize(d.Size), src.Size())
	}
	_, err := p.newRawVolume(ctx, d, size, func(v localstore.Volume) error {
		r, err := fastcopy.ToPath(ctx, v.Path, fastcopy.Spec{Source: src, Size: src.Size(), Zeros: v.Zeros,
			Report: func(p fastcopy.Progress) { report(p.Done, p.Total) }})
		p.result.RepositoryBytes += r.Read
		if err != nil || v.Zeros {
			return err
		}
		return writeVolume(v, func(f *os.File) error { return zeroRange(f, src.Size(), size-src.Size()) })
	})
	return err
}
