package cloud

import (
	"slices"
	"strings"

	"hayloft/cloud/fault"
)

// cacheModes are what CACHE_MODE can be; "" leaves it to the host: AROUND for clones, NONE for persistent images.
var cacheModes = []string{"", "NONE", "AROUND", "THRU", "BACK", "OFFLINE"}

// The modes that are checked by name.
const (
	CacheNone    = "NONE"
	CacheOffline = "OFFLINE"
)

// PreloadAuto is the PRELOAD_SIZE that follows the image's boot profile.
const PreloadAuto = -1

// ParseCacheMode reads a CACHE_MODE, in any case.
func ParseCacheMode(text string) (string, error) {
	mode := strings.ToUpper(strings.TrimSpace(text))
	if !slices.Contains(cacheModes, mode) {
		return "", fault.Errorf(fault.Invalid, "CACHE_MODE %q is none of NONE, AROUND, THRU, BACK, OFFLINE", text)
	}
	return mode, nil
}

// CheckCache refuses, by name, ways of caching that cannot be: driver is that of the image's datastore, hypervisor
// that of the machine ("" when it is not known yet). Sizes are checked once the image has one.
func (d *Disk) CheckCache(hypervisor, driver string) error {
	tree := hypervisor == "lxc" || (&Image{Format: d.Format}).Tree()
	unsupported := func(of, why string) error {
		return fault.Errorf(fault.Unsupported, "CACHE_MODE %s is not possible for %s: %s", d.Mode, of, why)
	}
	whole := d.Mode == "" || d.Mode == CacheOffline
	repository, err := LookupDatastoreDriver(driver)
	if err != nil {
		return err
	}
	switch {
	case d.Persistent && !repository.Persistent:
		return fault.Errorf(fault.Unsupported, "an image in a datastore of driver %s cannot be persistent", driver)
	case d.Persistent && tree:
		if d.Mode != "" && d.Mode != CacheNone {
			return unsupported("persistent images of containers", "they are used in place")
		}
	case tree && !whole:
		return unsupported("containers", "their tree is unpacked from the whole archive first, as OFFLINE says")
	case d.CDROM && !whole:
		return unsupported("CDROMs", "OFFLINE (the whole image first) is")
	}
	if d.Mode == CacheOffline && d.CacheSize > 0 && d.CacheSize < d.ImageSize {
		return fault.Errorf(fault.Invalid, "CACHE_MODE OFFLINE keeps the whole image here: CACHE_SIZE is %d MB and the image has %d MB",
			d.CacheSize>>20, (d.ImageSize+1<<20-1)>>20)
	}
	return nil
}

// leastKernelCache is the smallest cache of a kernel that a disk gets which does not say its CACHE_SIZE, in bytes.
const leastKernelCache = 64 << 20

// KernelCacheBytes is how large a cache the kernel gets for a disk of size bytes: CACHE_SIZE, or an eighth of the disk.
func KernelCacheBytes(cacheSize, size int64) int64 {
	if cacheSize == 0 {
		cacheSize = max(leastKernelCache, size/8)
	}
	const mebi = 1 << 20
	return (cacheSize + mebi - 1) / mebi * mebi
}
