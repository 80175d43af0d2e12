package way

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/cache"
	"hayloft/disk/device"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
)

// smallImage is how many bytes of data an image may have to be brought here whole before its machines boot, when
// nobody asks for anything else: it takes a second, and then no process is in the way of the disk.
const smallImage = 64 << 20

// below is what a clone of an image stands on.
type below struct {
	path   string         // of the file: the base's, also while it is not whole; or the source's own
	export *device.Device // how its bytes are reached as long as that file has not all of them; else nil
}

// below makes an image ready for a clone of it to stand on, as its mode wants it.
func (p *preparation) below(ctx context.Context, spec disk.Spec, d *diskRecord) (below, error) {
	if d.Mode == cache.None {
		path, err := p.sourceFile(ctx, *spec.Image)
		if err != nil {
			return below{}, named(*spec.Image, err)
		}
		if path == "" {
			return p.directly(ctx, *spec.Image, d)
		}
		return below{path: path}, nil
	}
	capacity := spec.CacheSize
	if d.Mode == cache.Offline {
		capacity = 0
	}
	k, err := p.way.know(ctx, *spec.Image, capacity)
	if err != nil {
		return below{}, named(*spec.Image, err)
	}
	p.result.RepositoryBytes += k.read
	if k.path != "" {
		return below{path: k.path}, nil
	}
	if d.Mode == cache.Offline && spec.CacheSize > 0 && spec.CacheSize < k.status.Total {
		return below{}, named(*spec.Image, fault.Errorf(fault.Invalid, "CACHE_MODE OFFLINE keeps all %d bytes here, CACHE_SIZE is %d", k.status.Total, spec.CacheSize))
	}
	if d.Mode == cache.Offline || isSmall(spec, k) {
		path, err := p.base(ctx, *spec.Image, localstore.Data)
		return below{path: path}, err
	}
	return p.lazy(ctx, spec, d, k)
}

// isSmall says whether an image comes whole without having been asked for.
func isSmall(spec disk.Spec, k known) bool {
	return k.status.Total <= smallImage && (spec.Mode == "" || cache.Mode(spec.Mode) == cache.Around) &&
		spec.Preload == disk.PreloadAuto && !spec.NoFill && k.spec.Capacity == 0
}

// lazy exports a base that is filled as it is read, unless it has become whole.
func (p *preparation) lazy(ctx context.Context, spec disk.Spec, d *diskRecord, k known) (below, error) {
	w, img := p.way, *spec.Image
	if spec.Preload > 0 {
		first := blockd.Preload{Bytes: min(spec.Preload, img.Size)}
		if k.spec.Capacity > 0 {
			first.Bytes = min(first.Bytes, k.spec.Capacity)
		}
		read, err := w.preload(ctx, k, first, p.reporter("preload "+img.Name))
		p.result.RepositoryBytes += read
		if err != nil {
			return below{}, named(img, err)
		}
	}
	path, err := w.store.Find(ctx, img.Digest, localstore.Data)
	if err != nil || path != "" {
		return below{path: path}, err
	}
	if path, err = w.store.Path(img.Digest, localstore.Data); err != nil {
		return below{}, err
	}
	export := p.newExport(spec.ID)
	export.Base, export.Record = &k.spec, d.Kind == overlay
	if err := p.export(ctx, d, export); err != nil {
		return below{}, named(img, err)
	}
	if err := w.fillBehind(ctx, spec, k); err != nil {
		return below{}, named(img, err)
	}
	return below{path: path, export: nbdDevice(*d.Export, true)}, nil
}

// fillBehind has the data path go on while the machine runs.
func (w *Way) fillBehind(ctx context.Context, spec disk.Spec, k known) error {
	data, err := w.data()
	if err != nil {
		return err
	}
	preload := blockd.Preload{Digest: k.spec.Image.Digest, Background: true}
	if spec.Preload == disk.PreloadAuto {
		profile := preload
		profile.Profile = true
		if err := data.Preload(ctx, profile, nil); err != nil {
			return err
		}
	}
	if spec.NoFill || k.spec.Capacity > 0 { // what does not fit would only drive out what is used
		return nil
	}
	preload.All, preload.Rate = true, spec.FillRate
	return data.Preload(ctx, preload, nil)
}

// sourceFile is an image's file or device in its repository, for the machine's hypervisor to read; "" when this host has
// none.
func (p *preparation) sourceFile(ctx context.Context, img disk.Image) (string, error) {
	repo, err := p.way.open(img.Repository)
	if err != nil {
		return "", err
	}
	src, err := repo.Open(ctx, img.Source)
	if err != nil {
		return "", err
	}
	defer src.Close()
	local, ok := src.(repository.Local)
	if src.Size() != img.Size {
		return "", fault.Errorf(fault.Corrupt, "object %s has %d bytes instead of %d", img.Source, src.Size(), img.Size)
	}
	if !ok {
		return "", nil
	}
	path := local.LocalPath()
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return path, makeReadable(path, fi, p.request.GID)
}

// directly has the data path export an image as it is in its repository, for a clone to stand on. The clone's header names
// the base that the host would have of it, which has the same bytes.
func (p *preparation) directly(ctx context.Context, img disk.Image, d *diskRecord) (below, error) {
	path, err := p.way.store.Path(img.Digest, localstore.Data)
	if err != nil {
		return below{}, named(img, err)
	}
	export := p.newExport(d.ID)
	export.Direct = &blockd.DirectSpec{Image: img, Machine: p.request.Machine, Host: p.way.config.Host, ReadOnly: true}
	if err := p.export(ctx, d, export); err != nil {
		return below{}, named(img, err)
	}
	return below{path: path, export: nbdDevice(*d.Export, true)}, nil
}

// makeReadable has the group of the hypervisors read an image in its repository, as it reads bases.
func makeReadable(path string, fi fs.FileInfo, gid int) error {
	const everybody, group = 0o004, 0o040
	isGroups := fi.Sys().(*syscall.Stat_t).Gid == uint32(gid)
	if os.Geteuid() != 0 || fi.Mode().Perm()&everybody != 0 || isGroups && fi.Mode().Perm()&group != 0 {
		return nil
	}
	err := os.Chown(path, -1, gid)
	if err == nil {
		err = os.Chmod(path, fi.Mode().Perm()|group)
	}
	if err != nil {
		return fmt.Errorf("CACHE_MODE NONE has the hypervisor read the source: %w", err)
	}
	return nil
}

func driverName(r disk.Repository) string {
	if r.Driver == "" {
		return "path"
	}
	return r.Driver
}
