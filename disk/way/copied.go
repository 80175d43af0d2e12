package way

import (
	"context"
	"os"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/localstore"
)

// copied gives the machine a whole copy of an image: a snapshot of the base in a volume where the store can make one, else a
// copy of that, and when there is no room for both a copy straight from the repository.
func (p *preparation) copied(ctx context.Context, spec disk.Spec, d *diskRecord) (device.Device, error) {
	img := *spec.Image
	if d.Volume == "" { // it was copied on a host with volumes, and came here in a stash
		path := diskPath(p.request.Dir, spec.ID)
		if err := growFile(path, d.Size); err != nil {
			return device.Device{}, named(img, err)
		}
		return device.Device{Kind: device.File, Path: path, Format: device.Raw, ReadOnly: spec.ReadOnly}, own(path, p.request.UID, p.request.GID)
	}
	if spec.CacheSize > 0 && spec.CacheSize < img.Size {
		return device.Device{}, named(img, fault.Errorf(fault.Invalid, "CACHE_MODE OFFLINE keeps all %d bytes here, CACHE_SIZE is %d", img.Size, spec.CacheSize))
	}
	var (
		v   localstore.Volume
		err error
	)
	if d.Made {
		v, err = p.hadVolume(ctx, d, d.Size)
	} else if v, err = p.copyOfBase(ctx, img, d); fault.Is(err, fault.OutOfSpace) {
		v, err = p.copyOfImage(ctx, img, d)
	}
	if err != nil {
		return device.Device{}, named(img, err)
	}
	return deviceOf(v, device.Raw, spec.ReadOnly), nil
}

// copyOfBase has the whole image in a volume for all machines, and gives this one a snapshot or copy of it.
func (p *preparation) copyOfBase(ctx context.Context, img disk.Image, d *diskRecord) (v localstore.Volume, err error) {
	w := p.way
	name, err := baseVolume(img.Digest)
	if err != nil {
		return v, err
	}
	unpin, err := w.pinVolume(ctx, name)
	if err != nil {
		return v, err
	}
	defer unpin()
	path, read, err := w.base(ctx, img, volumeKind, 0, p.reporter("base "+img.Name))
	p.result.RepositoryBytes += read
	if err != nil {
		return v, err
	}
	volumes, err := p.beginVolume(ctx, d)
	if err != nil {
		return v, err
	}
	v, err = w.makingRoom(ctx, d.Size, func() (localstore.Volume, error) { return volumes.Snapshot(ctx, name, p.spec(d, d.Size)) })
	if err == nil {
		return v, p.filled(ctx, d)
	}
	if !fault.Is(err, fault.Unsupported) {
		return v, err
	}
	return p.newRawVolume(ctx, d, d.Size, func(v localstore.Volume) error { return p.copyLocal(ctx, img, d, path, v) })
}

// copyLocal copies an image from the volume of all into the machine's own.
func (p *preparation) copyLocal(ctx context.Context, img disk.Image, d *diskRecord, from string, v localstore.Volume) error {
	index, err := p.way.indexOfVolume(ctx, img)
	if err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	_, err = p.way.copyWhole(ctx, machineTurn(p.request.Machine), src, index, v, d.Size, p.reporter("copy "+img.Name))
	return err
}

// copyOfImage copies the image itself, for this machine alone.
func (p *preparation) copyOfImage(ctx context.Context, img disk.Image, d *diskRecord) (localstore.Volume, error) {
	return p.newRawVolume(ctx, d, d.Size, func(v localstore.Volume) error {
		_, read, err := p.way.copyInto(ctx, img, v, d.Size, p.reporter("copy "+img.Name))
		p.result.RepositoryBytes += read
		return err
	})
}
