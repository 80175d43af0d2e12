package operation

import (
	"fmt"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
)

// disks reads all DISK vectors, resolves their images, and finds out the hypervisor if it was not named.
func (o *Operations) disks(t template.Template, vm *cloud.VM) error {
	for i, v := range t.GetAll("DISK") {
		d, err := o.disk(i, v, vm)
		if err != nil {
			return fault.Errorf(fault.ClassOf(err), "DISK %d: %w", i, err)
		}
		vm.Disks = append(vm.Disks, d)
	}
	if vm.Hypervisor == "" {
		vm.Hypervisor = "qemu"
	}
	return targets(vm)
}

func (o *Operations) disk(id int, v template.Vector, vm *cloud.VM) (cloud.Disk, error) {
	d := cloud.Disk{ID: id, ImageID: -1, DatastoreID: -1}
	size, sized, err := v.Int("SIZE")
	if err != nil {
		return d, err
	}
	if sized && (size <= 0 || size > 1<<30) {
		return d, fault.Errorf(fault.Invalid, "SIZE is %d MB", size)
	}
	d.Size = int64(size) * mebi
	d.Target, _ = v.Get("TARGET")
	if d.Target == "" {
		prefix, _ := v.Get("DEV_PREFIX")
		d.Target = prefix // completed by targets
	}
	d.Cache, _ = v.Get("CACHE")
	if discard, ok := v.Get("DISCARD"); ok {
		d.Discard = strings.EqualFold(discard, "unmap")
	}
	if d.ReadOnly, _, err = v.Bool("READONLY"); err != nil {
		return d, err
	}
	own, err := cachingOf(v)
	if err != nil {
		return d, err
	}
	imageID, hasID, err := v.Int("IMAGE_ID")
	if err != nil {
		return d, err
	}
	d.SaveAs, _ = v.Get("SAVE_AS")
	name, named := v.Get("IMAGE")
	if !hasID && !named {
		if d, err = volatile(d, v, sized); err == nil {
			err = checkSaveAs(&d)
		}
		return d, err
	}
	return o.imageDisk(d, own, reference{imageID, hasID, name}, sized, vm)
}

func volatile(d cloud.Disk, v template.Vector, sized bool) (cloud.Disk, error) {
	kind, _ := v.Get("TYPE")
	d.Volatile = strings.ToLower(kind)
	if d.Volatile != "fs" && d.Volatile != "swap" {
		return d, fault.Errorf(fault.Invalid, "names neither IMAGE nor IMAGE_ID, and TYPE is %q, not fs or swap", kind)
	}
	if !sized {
		return d, fault.Errorf(fault.Invalid, "a volatile disk needs SIZE")
	}
	for _, name := range cacheAttributes {
		if _, ok := v.Get(name); ok {
			return d, fault.Errorf(fault.Unsupported, "%s is for disks with an image, and this one is volatile", name)
		}
	}
	d.FS, _ = v.Get("FS")
	return d, nil
}

func (o *Operations) imageDisk(d cloud.Disk, own caching, r reference, sized bool, vm *cloud.VM) (cloud.Disk, error) {
	img, err := o.findImage(r)
	if err != nil {
		return d, err
	}
	what := fmt.Sprintf("image %d (%s)", img.ID, img.Name)
	switch img.State {
	case cloud.ImageStateReady, cloud.ImageStateLocked:
	case cloud.ImageStateError:
		return d, fault.Errorf(fault.WrongState, "%s is in state ERROR: %s", what, img.Error)
	default:
		return d, fault.Errorf(fault.WrongState, "%s is in state %v", what, img.State)
	}
	if fileType(img.Type) {
		return d, fault.Errorf(fault.Invalid, "%s is a %v, not a disk", what, img.Type)
	}
	d.ImageID, d.Image, d.DatastoreID = img.ID, img.Name, img.DatastoreID
	d.Source, d.Format, d.Digest, d.ImageSize = img.Source, img.Format, img.Digest, img.ObjectSize
	d.Persistent = img.Persistent
	d.CDROM = img.Type == cloud.ImageTypeCDROM
	d.ReadOnly = d.ReadOnly || d.CDROM
	if err := checkSaveAs(&d); err != nil {
		return d, err
	}
	if d.Target == "" {
		d.Target, _ = img.Template.Get("DEV_PREFIX")
	}
	if vm.Hypervisor == "" && img.State == cloud.ImageStateReady {
		vm.Hypervisor = "qemu"
		if img.Tree() {
			vm.Hypervisor = "lxc"
		}
	}
	if img.State == cloud.ImageStateReady {
		if ok, why := img.Compatible(vm.Hypervisor); !ok {
			return d, fault.Errorf(fault.Invalid, "%s cannot be a disk of a machine with HYPERVISOR %s: %s", what, vm.Hypervisor, why)
		}
	}
	switch {
	case sized && (d.Persistent || d.CDROM):
		return d, fault.Errorf(fault.Invalid, "%s is persistent or a CDROM: SIZE cannot be set", what)
	case sized && d.Size < img.Size:
		return d, fault.Errorf(fault.Invalid, "SIZE is %d MB, and %s has %d MB", d.Size/mebi, what, (img.Size+mebi-1)/mebi)
	case !sized:
		d.Size = img.Size
	}
	if err := o.cacheDisk(&d, own, &img, vm.Hypervisor); err != nil {
		return d, fault.Errorf(fault.ClassOf(err), "%s: %w", what, err)
	}
	return d, nil
}

const defaultPrefix = "vd"

// targets completes device names: prefix and next free letter, the first disk first.
func targets(vm *cloud.VM) error {
	taken := map[string]bool{}
	for _, d := range vm.Disks {
		if len(d.Target) > 2 {
			if taken[d.Target] {
				return fault.Errorf(fault.Invalid, "DISK %d: TARGET %s is taken", d.ID, d.Target)
			}
			taken[d.Target] = true
		}
	}
	for i := range vm.Disks {
		d := &vm.Disks[i]
		prefix := d.Target
		if len(prefix) > 2 {
			prefix = prefix[:2]
		} else if prefix == "" {
			prefix = defaultPrefix
			if d.CDROM && vm.OS.Machine != "q35" {
				prefix = "hd"
			} else if d.CDROM {
				prefix = "sd"
			}
		}
		if prefix != "vd" && prefix != "sd" && prefix != "hd" {
			return fault.Errorf(fault.Invalid, "DISK %d: device prefix %q is none of vd, sd, hd", d.ID, prefix)
		}
		if len(d.Target) <= 2 {
			d.Target = nextTarget(prefix, taken)
			taken[d.Target] = true
		}
	}
	return nil
}

func nextTarget(prefix string, taken map[string]bool) string {
	for n := 0; ; n++ {
		name := prefix + letters(n)
		if !taken[name] {
			return name
		}
	}
}

// letters counts a, b, ..., z, aa, ab, ...
func letters(n int) string {
	if n < 26 {
		return string(rune('a' + n))
	}
	return letters(n/26-1) + letters(n%26)
}
