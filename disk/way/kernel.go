package way

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/device"
	"hayloft/disk/kernelcache"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/image"
)

// kernelCache is what is remembered of a persistent image's cache in the kernel, from before it is made until it has been
// taken away.
type kernelCache struct {
	Driver string     `json:"driver"` // LC_MAD
	Mode   cache.Mode `json:"mode"`
	Size   int64      `json:"size"`             // of what it has here, in bytes
	Volume string     `json:"volume,omitempty"` // that it has here, "": a file in the disk's directory of caches
	// Begun is set before anything is made.
	Begun bool `json:"begun,omitempty"`
	// Generation is the one that the image was taken with, 0 where the repository knows none.
	Generation uint64 `json:"generation,omitempty"`
	// Spec is what the driver was told last.
	Spec kernelcache.Spec `json:"spec"`
}

// UnorderedBack is the datastore's attribute that accepts what mode BACK is in a kernel's cache.
const UnorderedBack = "UNORDERED_BACK"

// isKernels reports whether a persistent image's mode is one for the kernel's cache on this host. Whole copies are our own.
func (w *Way) isKernels(mode cache.Mode) bool {
	return w.config.Kernel != nil && mode != cache.None && mode != cache.Offline
}

// planKernel refuses what the host's driver cannot do, and says what it is to do.
func (w *Way) planKernel(machine int, s disk.Spec, d *diskRecord) (*kernelCache, error) {
	img, name := s.Image, w.config.KernelName
	switch modes := w.config.Kernel.Modes(); {
	case !slices.Contains(modes, d.Mode):
		return nil, fault.Errorf(fault.Unsupported, "CACHE_MODE %s: LC_MAD %s of this host has %v", d.Mode, name, modes)
	case image.Format(img.Format) != image.Raw:
		return nil, fault.Errorf(fault.Unsupported, "CACHE_MODE %s by LC_MAD %s: the image has format %s, not raw", d.Mode, name, img.Format)
	case d.Mode == cache.Back && img.Repository.Options[UnorderedBack] != "YES":
		return nil, fault.Errorf(fault.Unsupported, "CACHE_MODE BACK by LC_MAD %s writes back in any order: when the host or its cache is lost, the image "+
			"is not one that it ever was, whatever was flushed. Datastore %d accepts that with %s=YES", name, img.Repository.ID, UnorderedBack)
	}
	k := &kernelCache{Driver: name, Mode: d.Mode, Size: cloud.KernelCacheBytes(s.CacheSize, d.Size)}
	if w.config.Volumes != nil {
		k.Volume = volumeName(machine, d.ID) + cacheSuffix
	}
	return k, nil
}

// kernel puts the kernel's cache before a persistent image.
func (p *preparation) kernel(ctx context.Context, repo repository.Repository, spec disk.Spec, d *diskRecord) (device.Device, error) {
	w := p.way
	ownable, ok := repo.(repository.Ownable)
	if !ok {
		return device.Device{}, w.noDevice(spec.Image.Repository, d.Mode)
	}
	if d.Cached {
		if err := p.endVolume(ctx, d); err != nil {
			return device.Device{}, err
		}
	}
	want, err := w.planKernel(p.request.Machine, spec, d)
	if err != nil {
		return device.Device{}, err
	}
	had := d.Kernel != nil && d.Kernel.Begun
	if had {
		if err := w.stillOurs(ctx, repo, p.request.Machine, d); err != nil {
			return device.Device{}, err
		}
		if d.Kernel.Mode != want.Mode || d.Kernel.Driver != want.Driver || d.Kernel.Size != want.Size {
			if err := p.endKernel(ctx, d); err != nil {
				return device.Device{}, err
			}
			had = false
		}
	}
	path, err := p.own(ctx, ownable, spec, os.Geteuid(), os.Getegid())
	if err == nil {
		err = w.lengthen(ctx, repo, p.request.Machine, path, d)
	}
	if err != nil {
		return device.Device{}, err
	}
	if !had {
		if err := p.beginKernel(ctx, repo, d, want); err != nil {
			return device.Device{}, err
		}
	}
	status, err := w.attachKernel(ctx, repo, p.record, d, path, p.request.UID, p.request.GID)
	if err != nil {
		return device.Device{}, err
	}
	return device.Device{Kind: device.Block, Path: status.Device, Format: device.Raw, ReadOnly: spec.ReadOnly}, nil
}

func (w *Way) noDevice(r disk.Repository, mode cache.Mode) error {
	return fault.Errorf(fault.Unsupported, "CACHE_MODE %s by LC_MAD %s needs the image as a device or file of this host, and datastore %d has driver %s",
		mode, w.config.KernelName, r.ID, driverName(r))
}

// lengthen makes a persistent image in its repository as long as the machine is to see it.
func (w *Way) lengthen(ctx context.Context, repo repository.Repository, machine int, path string, d *diskRecord) error {
	if path == "" {
		return w.noDevice(*d.Repository, d.Mode)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	size, err := lengthOf(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	d.Size = max(d.Size, roundUp(size, sector)) // grown elsewhere
	if size >= d.Size {
		return nil
	}
	return w.growImage(ctx, repo, machine, path, d, d.Size)
}

// growImage makes a persistent image longer: its file, or what its driver has of it.
func (w *Way) growImage(ctx context.Context, repo repository.Repository, machine int, path string, d *diskRecord, size int64) error {
	if path != "" && !isBlock(path) {
		return growFile(path, size)
	}
	writable, ok := repo.(repository.Writable)
	if !ok {
		return fault.Errorf(fault.Unsupported, "datastore %d has driver %s, which cannot make an image longer", d.Repository.ID, driverName(*d.Repository))
	}
	target, _, err := writable.OpenTarget(ctx, d.Source, w.owner(machine))
	if err != nil {
		return err
	}
	return errors.Join(target.Truncate(size), target.Close())
}

// beginKernel counts the space of a new cache and remembers it, before there is anything.
func (p *preparation) beginKernel(ctx context.Context, repo repository.Repository, d *diskRecord, want *kernelCache) error {
	w := p.way
	if writable, ok := repo.(repository.Writable); ok {
		mark, err := writable.Marked(ctx, d.Source)
		if err != nil {
			return err
		}
		want.Generation = mark.Generation
	}
	before := p.record.promised()
	want.Begun = true
	d.Kernel = want
	more, err := w.store.Reserve(ctx, "cache", max(0, p.record.promised()-before), 0)
	if err != nil {
		return err
	}
	defer more.Release()
	if err := w.dropLocal(ctx, p.record, d); err != nil { // of a machine of which nothing else is known
		return err
	}
	if err := w.putRecord(ctx, p.record); err != nil {
		return err
	}
	p.back.Push(func() error {
		if d.Kernel == nil {
			return nil
		}
		return p.keepWhenStuck(w.dropKernel(context.WithoutCancel(ctx), p.record, d, nil))
	})
	return nil
}

// attachKernel makes what a cache needs on this host, or finds it, and has the driver put it together.
func (w *Way) attachKernel(ctx context.Context, repo repository.Repository, r *record, d *diskRecord, path string, uid, gid int) (kernelcache.Status, error) {
	driver, err := w.kernelDriver(d)
	if err != nil {
		return kernelcache.Status{}, err
	}
	s := kernelcache.Spec{Name: volumeName(r.ID, d.ID), Mode: d.Kernel.Mode, UID: uid, GID: gid}
	if s.Source, err = w.blocks.attach(ctx, path, sourceTag(s.Name)); err != nil {
		return kernelcache.Status{}, err
	}
	if s.Local, err = w.localOf(ctx, r, d); err != nil {
		return kernelcache.Status{}, err
	}
	if d.Kernel.Spec != s {
		d.Kernel.Spec = s
		if err := w.putRecord(ctx, r); err != nil {
			return kernelcache.Status{}, err
		}
	}
	if s.Mode == cache.Back { // from the first write on the image may lack some
		if err := w.markUndrained(ctx, repo, r.ID, d, true); err != nil {
			return kernelcache.Status{}, err
		}
	}
	return driver.Attach(ctx, s)
}

func sourceTag(name string) string { return "cache source " + name }
func localTag(name string) string  { return "cache " + name }

// kernelDriver is the driver that a disk's cache was made with.
func (w *Way) kernelDriver(d *diskRecord) (kernelcache.Driver, error) {
	if w.config.Kernel == nil || w.config.KernelName != d.Kernel.Driver {
		return nil, fault.Errorf(fault.WrongState, "is cached by LC_MAD %s, and this host's agent was started with another: start it with that one until the disk has been drained",
			d.Kernel.Driver)
	}
	return w.config.Kernel, nil
}

// localOf gives a cache its space on this host as a block device.
func (w *Way) localOf(ctx context.Context, r *record, d *diskRecord) (string, error) {
	name := volumeName(r.ID, d.ID)
	if d.Kernel.Volume != "" {
		v, err := w.provision(ctx, localstore.VolumeSpec{Name: d.Kernel.Volume, Size: d.Kernel.Size, UID: os.Geteuid(), GID: os.Getegid()})
		if err != nil || v.Block {
			return v.Path, err
		}
		return w.blocks.attach(ctx, v.Path, localTag(name))
	}
	path := kernelFile(r.Dir, d.ID)
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !os.IsExist(err) {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, d.Kernel.Size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(d.Kernel.Size)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	return w.blocks.attach(ctx, path, localTag(name))
}

// kernelFile is where a kernel's cache is on a host without volumes.
func kernelFile(dir string, id int) string { return filepath.Join(cacheDir(dir, id), "kernel") }

// hasLocal reports whether a cache was given its space, so that it may have something.
func (w *Way) hasLocal(ctx context.Context, r *record, d *diskRecord) (path string, block bool, err error) {
	if d.Kernel.Volume == "" {
		path = kernelFile(r.Dir, d.ID)
		if _, err := os.Lstat(path); err != nil {
			if os.IsNotExist(err) {
				return "", false, nil
			}
			return "", false, err
		}
		return path, false, nil
	}
	volumes, err := w.volumes(ctx)
	if err != nil {
		return "", false, err
	}
	v, err := volumes.Find(ctx, d.Kernel.Volume)
	if fault.Is(err, fault.NotFound) {
		return "", false, nil
	}
	return v.Path, v.Block, err
}
