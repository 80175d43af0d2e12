package way

import (
	"context"
	"fmt"
	"os"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/internal/command"
)

// makers are the programs that make a file system in a file, and what keeps them from asking.
var makers = map[string][]string{
	"ext2": {"mkfs.ext2", "-q", "-F"}, "ext3": {"mkfs.ext3", "-q", "-F"}, "ext4": {"mkfs.ext4", "-q", "-F"},
	"xfs": {"mkfs.xfs", "-q", "-f"}, "btrfs": {"mkfs.btrfs", "-q", "-f"}, "vfat": {"mkfs.vfat"},
}

func planVolatile(s disk.Spec, d diskRecord) (diskRecord, error) {
	switch {
	case s.Tree:
		return d, fault.Errorf(fault.Unsupported, "a volatile disk is a block device, not a directory tree")
	case s.Size == 0:
		return d, fault.Errorf(fault.Invalid, "a volatile disk without size")
	case s.Mode != "":
		return d, fault.Errorf(fault.Unsupported, "CACHE_MODE %s of a volatile disk", s.Mode)
	case s.Volatile == "swap":
	case s.Volatile != "fs" && s.Volatile != "":
		return d, fault.Errorf(fault.Invalid, "volatile disk of type %q; fs and swap are known", s.Volatile)
	case s.FS != "" && s.FS != "raw" && makers[s.FS] == nil:
		return d, fault.Errorf(fault.Unsupported, "file system %q on a volatile disk", s.FS)
	}
	d.Kind = volatile
	return d, nil
}

// volatile makes an empty disk that goes with the machine.
func (p *preparation) volatile(ctx context.Context, spec disk.Spec, record *diskRecord) (device.Device, error) {
	step := disk.Progress{Step: fmt.Sprintf("volatile %d", spec.ID)}
	if record.Volume != "" {
		if record.Made {
			v, err := p.hadVolume(ctx, record, record.Size)
			return deviceOf(v, device.Raw, spec.ReadOnly), err
		}
		p.progress(step)
		v, err := p.newVolume(ctx, record, record.Size, func(f *os.File) error { return p.format(ctx, spec, f.Name()) })
		return deviceOf(v, device.Raw, spec.ReadOnly), err
	}
	path := diskPath(p.request.Dir, spec.ID)
	d := device.Device{Kind: device.File, Path: path, Format: device.Raw, ReadOnly: spec.ReadOnly}
	if _, err := os.Lstat(path); err == nil {
		return d, own(path, p.request.UID, p.request.GID)
	}
	p.progress(step)
	return d, p.newFile(path, func(f *os.File) error {
		if err := f.Truncate(record.Size); err != nil {
			return err
		}
		return p.format(ctx, spec, f.Name())
	})
}

// format makes what is asked for on an empty disk, if anything.
func (p *preparation) format(ctx context.Context, spec disk.Spec, path string) error {
	maker := makers[spec.FS]
	if spec.Volatile == "swap" {
		maker = []string{"mkswap"}
	}
	if maker == nil {
		return nil
	}
	_, err := p.way.config.Runner.Run(ctx, command.Cmd{Name: maker[0], Args: append(append([]string{}, maker[1:]...), path)})
	return err
}
