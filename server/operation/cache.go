package operation

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/server/lifecycle"
)

// caching is what a template says about caches. Nil: nothing, so that what stands above it counts.
type caching struct {
	mode          *string
	size, preload *int64 // bytes
}

// valued is what templates and DISK vectors have in common.
type valued interface {
	Get(name string) (string, bool)
	Int(name string) (int, bool, error)
}

// cacheAttributes are the names that caching is read from.
var cacheAttributes = []string{"CACHE_MODE", "CACHE_SIZE", "PRELOAD_SIZE"}

const largestCache = 1 << 30 // MB

// cachingOf reads CACHE_MODE, CACHE_SIZE (MB; 0 is no bound) and PRELOAD_SIZE (MB, or AUTO).
func cachingOf(t valued) (c caching, err error) {
	if text, ok := t.Get("CACHE_MODE"); ok && text != "" {
		mode, err := cloud.ParseCacheMode(text)
		if err != nil {
			return c, err
		}
		c.mode = &mode
	}
	if c.size, err = megabytesOf(t, "CACHE_SIZE"); err != nil {
		return c, err
	}
	if text, _ := t.Get("PRELOAD_SIZE"); strings.EqualFold(strings.TrimSpace(text), "AUTO") {
		auto := int64(cloud.PreloadAuto)
		c.preload = &auto
		return c, nil
	}
	if c.preload, err = megabytesOf(t, "PRELOAD_SIZE"); err != nil {
		return c, fault.Errorf(fault.Invalid, "%w, or AUTO", err)
	}
	return c, nil
}

func megabytesOf(t valued, name string) (*int64, error) {
	n, ok, err := t.Int(name)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, nil
	case n < 0 || n > largestCache:
		return nil, fault.Errorf(fault.Invalid, "%s is %d; want 0 to %d MB", name, n, largestCache)
	}
	bytes := int64(n) * mebi
	return &bytes, nil
}

// inherited are the settings of a disk: what it says itself, else its image, else the datastore.
func (o *Operations) inherited(disk caching, img *cloud.Image) (all caching, ds cloud.Datastore, err error) {
	if ds, err = o.Inv.Datastore(img.DatastoreID); err != nil {
		return all, ds, err
	}
	all = disk
	for _, above := range []struct {
		what string
		t    template.Template
	}{{"its template", img.Template}, {"datastore " + ds.Name, ds.Template}} {
		c, err := cachingOf(above.t)
		if err != nil {
			return all, ds, fault.Errorf(fault.ClassOf(err), "%s: %w", above.what, err)
		}
		all.mode = first(all.mode, c.mode)
		all.size = first(all.size, c.size)
		all.preload = first(all.preload, c.preload)
	}
	return all, ds, nil
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// cacheDisk puts the settings into a disk of an image and refuses what cannot be.
func (o *Operations) cacheDisk(d *cloud.Disk, own caching, img *cloud.Image, hypervisor string) error {
	all, ds, err := o.inherited(own, img)
	if err != nil {
		return err
	}
	d.Mode, d.CacheSize, d.Preload = "", 0, cloud.PreloadAuto
	if all.mode != nil {
		d.Mode = *all.mode
	}
	if all.size != nil {
		d.CacheSize = *all.size
	}
	if all.preload != nil {
		d.Preload = *all.preload
	}
	if hypervisor == "lxc" || img.Tree() || d.CDROM {
		if own.size != nil || own.preload != nil {
			return fault.Errorf(fault.Unsupported, "CACHE_SIZE and PRELOAD_SIZE are not possible for containers and CDROMs: they have the whole image")
		}
		d.CacheSize, d.Preload = 0, 0
	}
	return d.CheckCache(hypervisor, ds.Driver)
}

// checkCaching refuses an image's or datastore's template whose caching attributes nobody could use.
func checkCaching(kind, name string, t template.Template) error {
	if _, err := cachingOf(t); err != nil {
		return fault.Errorf(fault.ClassOf(err), "%s %s: %w", kind, name, err)
	}
	if kind == cloud.KindDatastore {
		if _, _, err := lifecycle.FillOf(t); err != nil {
			return fault.Errorf(fault.ClassOf(err), "%s %s: %w", kind, name, err)
		}
	}
	return nil
}

// DiskCache is a change of a disk's caching. Empty keeps.
type DiskCache struct {
	Mode    string
	SizeMB  string
	Preload string // MB, or AUTO
}

// SetDiskCache changes how a disk of a machine that is off is cached, from its next start on. Writes that the
// repository has not yet are in the form of the mode that they were made in: then it is fault.Busy.
func (o *Operations) SetDiskCache(ctx context.Context, id, diskID int, change DiskCache) error {
	var asked template.Vector
	for i, value := range []string{change.Mode, change.SizeMB, change.Preload} {
		if value != "" {
			asked.Set(cacheAttributes[i], value)
		}
	}
	if len(asked) == 0 {
		return fault.Errorf(fault.Invalid, "disk cache: want CACHE_MODE, CACHE_SIZE or PRELOAD_SIZE")
	}
	if _, err := cachingOf(asked); err != nil {
		return err
	}
	return o.change(ctx, id, "disk-cache", func(vm *cloud.VM) error {
		if err := lifecycle.Apply(vm, cloud.EventDiskCache, o.Now()); err != nil {
			return err
		}
		at := slices.IndexFunc(vm.Disks, func(d cloud.Disk) bool { return d.ID == diskID })
		if at < 0 {
			return fault.Errorf(fault.NotFound, "it has no disk %d", diskID)
		}
		return o.recache(vm, at, asked)
	})
}

func (o *Operations) recache(vm *cloud.VM, at int, asked template.Vector) error {
	vm.Disks = slices.Clone(vm.Disks)
	d := &vm.Disks[at]
	switch {
	case d.ImageID < 0:
		return fault.Errorf(fault.Unsupported, "disk %d is volatile: it has no image to cache", d.ID)
	case vm.Warning != "":
		return fault.Errorf(fault.Busy, "disk %d: %s; its caching can be changed after that", d.ID, vm.Warning)
	}
	img, err := o.Inv.Image(d.ImageID)
	if err != nil {
		return err
	}
	own := template.Vector{}
	disks := slices.Clone(vm.Template.GetAll("DISK"))
	if at < len(disks) {
		own = slices.Clone(disks[at])
	}
	for _, pair := range asked {
		own.Set(pair.Name, strings.ToUpper(pair.Value))
	}
	settings, err := cachingOf(own)
	if err != nil {
		return err
	}
	if err := o.cacheDisk(d, settings, &img, vm.Hypervisor); err != nil {
		return fault.Errorf(fault.ClassOf(err), "disk %s, image %d (%s): %w", strconv.Itoa(d.ID), img.ID, img.Name, err)
	}
	if at < len(disks) {
		disks[at] = own
		vm.Template = vm.Template.Clone()
		vm.Template.SetAll("DISK", disks)
	}
	return nil
}
