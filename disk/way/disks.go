package way

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/localstore"
	"hayloft/image/qcow2"
	"hayloft/internal/command"
	"hayloft/internal/durable"
)

// overlay makes a qcow2 of the machine's own on what is below it. One that is there already is kept.
func (p *preparation) overlay(ctx context.Context, spec disk.Spec, record *diskRecord) (device.Device, error) {
	base, err := p.below(ctx, spec, record)
	if err != nil {
		return device.Device{}, err
	}
	if record.Volume != "" {
		return p.overlayVolume(ctx, record, base)
	}
	path := diskPath(p.request.Dir, spec.ID)
	d := device.Device{Kind: device.File, Path: path, Format: device.QCOW2, Backing: base.export}
	there, err := readOverlay(path)
	record.Size = max(record.Size, there.Size) // grown elsewhere
	if err == nil {
		if err := p.standOn(ctx, path, there, base.path); err != nil {
			return d, err
		}
		return d, own(path, p.request.UID, p.request.GID)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	p.progress(disk.Progress{Step: fmt.Sprintf("overlay %d", spec.ID)})
	return d, p.newFile(path, func(f *os.File) error {
		return qcow2.Write(f, qcow2.Overlay{Size: record.Size, Backing: base.path, BackingFormat: "raw"})
	})
}

// standOn has an overlay name its base: it may have been made on another host, for another local store, or in another mode.
func (p *preparation) standOn(ctx context.Context, path string, there qcow2.Overlay, base string) error {
	if there.Backing == base {
		return nil
	}
	_, err := p.way.config.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", base, path}})
	return err
}

// overlayVolume makes the qcow2 in a volume, which has room for the disk written from end to end. What is in the volume
// beyond what the qcow2 names, nobody sees: QEMU writes whole clusters.
func (p *preparation) overlayVolume(ctx context.Context, record *diskRecord, base below) (device.Device, error) {
	if !record.Made {
		p.progress(disk.Progress{Step: fmt.Sprintf("overlay %d", record.ID)})
		v, err := p.newRawVolume(ctx, record, qcow2.FullSize(record.Size), func(v localstore.Volume) error {
			return writeVolume(v, func(f *os.File) error {
				return qcow2.Write(fixed{f, v.Size, v.Zeros}, qcow2.Overlay{Size: record.Size, Backing: base.path, BackingFormat: "raw"})
			})
		})
		return overlayDevice(v, base), err
	}
	v, err := p.hadVolume(ctx, record, qcow2.FullSize(record.Size))
	if err != nil {
		return device.Device{}, err
	}
	d := overlayDevice(v, base)
	there, err := readOverlay(v.Path)
	if err != nil {
		return d, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	if there.Size > record.Size { // grown elsewhere
		record.Size = there.Size
		if _, err := p.way.provision(ctx, p.spec(record, qcow2.FullSize(record.Size))); err != nil {
			return d, err
		}
	}
	return d, p.standOn(ctx, v.Path, there, base.path)
}

func overlayDevice(v localstore.Volume, base below) device.Device {
	d := deviceOf(v, device.QCOW2, false)
	d.Backing = base.export
	return d
}

func readOverlay(path string) (qcow2.Overlay, error) {
	f, err := os.Open(path)
	if err != nil {
		return qcow2.Overlay{}, err
	}
	defer f.Close()
	return qcow2.Read(f)
}

// newFile makes a file that is whole and the machine's as soon as it has its name, durably: without it, an empty one would be made
// in the place of what the machine has written by then.
func (p *preparation) newFile(path string, fill func(*os.File) error) (err error) {
	f, err := os.OpenFile(path+".part", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(path+".part"))
		}
	}()
	err = fill(f)
	if err == nil && os.Geteuid() == 0 {
		err = f.Chown(p.request.UID, p.request.GID)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := durable.Rename(path+".part", path); err != nil {
		return err
	}
	p.back.Push(func() error { return os.RemoveAll(path) })
	return nil
}

// whole is what would be below an overlay: read-only disks need nothing of their own.
func (p *preparation) whole(ctx context.Context, spec disk.Spec, record *diskRecord) (device.Device, error) {
	base, err := p.below(ctx, spec, record)
	if err != nil || base.export != nil {
		return deref(base.export), err
	}
	return device.Device{Kind: device.File, Path: base.path, Format: device.Raw, ReadOnly: true}, nil
}

func deref(d *device.Device) device.Device {
	if d == nil {
		return device.Device{}
	}
	return *d
}

// growFile makes a raw disk larger, never smaller.
func growFile(path string, size int64) error {
	fi, err := os.Stat(path)
	if err != nil || fi.Size() >= size {
		return err
	}
	return os.Truncate(path, size)
}

// tree puts directories of the machine's own on the shared tree.
func (p *preparation) tree(ctx context.Context, spec disk.Spec) (device.Device, error) {
	lower, err := p.base(ctx, *spec.Image, localstore.Tree)
	if err != nil {
		return device.Device{}, err
	}
	d := device.Device{Kind: device.Directory, Lower: lower, ReadOnly: spec.ReadOnly}
	if spec.ReadOnly {
		return d, nil
	}
	dir := diskPath(p.request.Dir, spec.ID)
	d.Upper, d.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if _, err := os.Lstat(dir); err == nil {
		return d, nil
	}
	p.progress(disk.Progress{Step: fmt.Sprintf("overlay %d", spec.ID)})
	part := dir + ".part"
	if err := removeAll(part); err != nil { // of a crash
		return d, err
	}
	p.back.Push(func() error { return removeAll(part) })
	for _, sub := range []string{"", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(part, sub), 0o700); err != nil {
			return d, err
		}
	}
	// The merged root looks like the upper directory.
	if err := copyAttributes(lower, filepath.Join(part, "upper")); err != nil {
		return d, err
	}
	if err := durable.Rename(part, dir); err != nil {
		return d, err
	}
	p.back.Push(func() error { return removeAll(dir) })
	return d, nil
}

// copyAttributes gives a directory owner, mode and times of another.
func copyAttributes(from, to string) error {
	fi, err := os.Stat(from)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := own(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(to, fi.Mode()); err != nil {
		return err
	}
	return os.Chtimes(to, fi.ModTime(), fi.ModTime())
}

// removeAll also removes what has directories of mode 0, such as overlayfs's work directory, when we are not root.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, unix.EACCES) {
		return err
	}
	_ = filepath.WalkDir(path, func(dir string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(dir, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
