package mapped

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/internal/command"
	"hayloft/internal/dm"
)

// Kind says which cache it is, and how what is made for it is named.
type Kind struct {
	Driver string   // as in LC_MAD, in the headers of local volumes, and in errors
	Tag    string   // in the uuids of its mapped devices
	Parts  []string // what the names of a cache's mapped devices end with, in the order in which they are taken away: "" first, which is handed over
}

// Devices are the mapped devices of all caches of a kind that belong to one instance.
type Devices struct {
	Kind
	DM       dm.Tools
	instance string
	change   sync.Mutex
}

func newDevices(k Kind, instance string, run command.Runner) *Devices {
	return &Devices{Kind: k, DM: dm.Tools{Runner: run}, instance: instance}
}

// Alone runs f while nothing else of this process changes a cache.
func (d *Devices) Alone(f func() error) error {
	d.change.Lock()
	defer d.change.Unlock()
	return f()
}

// Name of a part's mapped device.
func (d *Devices) Name(s kernelcache.Spec, part string) string {
	return d.instance + "-" + s.Name + part
}

func (d *Devices) uuidPrefix() string { return "HAYLOFT-" + d.Tag + "-" + d.instance + "-" }

func (d *Devices) uuid(s kernelcache.Spec, part string) string { return d.uuidPrefix() + s.Name + part }

// Part is one mapped device: fault.NotFound, or fault.Busy when the name is that of something which is not ours.
func (d *Devices) Part(ctx context.Context, s kernelcache.Spec, part string) (dm.Device, error) {
	found, err := d.DM.Info(ctx, d.Name(s, part))
	if err == nil && found.UUID != d.uuid(s, part) {
		return found, fault.Errorf(fault.Busy, "mapped device %s is not ours: its uuid is %q", found.Name, found.UUID)
	}
	return found, err
}

// CreatePart makes one.
func (d *Devices) CreatePart(ctx context.Context, s kernelcache.Spec, part, table string) error {
	return d.DM.Create(ctx, d.Name(s, part), d.uuid(s, part), table)
}

// RemovePart removes one; nothing when there is none.
func (d *Devices) RemovePart(ctx context.Context, s kernelcache.Spec, part string) error {
	return d.DM.Remove(ctx, d.Name(s, part), d.uuid(s, part))
}

// RemoveParts removes all of them.
func (d *Devices) RemoveParts(ctx context.Context, s kernelcache.Spec) error {
	for _, part := range d.Parts {
		if err := d.RemovePart(ctx, s, part); err != nil {
			return err
		}
	}
	return nil
}

// Header of a cache that the kernel has.
func (d *Devices) Header(s kernelcache.Spec) (local.Header, error) {
	h, err := local.Find(d.Driver, d.instance, s)
	if errors.Is(err, local.ErrBlank) {
		err = fault.Errorf(fault.Corrupt, "%s has no header, yet mapped device %s is there", s.Local, d.Name(s, ""))
	}
	return h, err
}

// names of the caches that have a mapped device.
func (d *Devices) names(ctx context.Context) ([]string, error) {
	devices, err := d.DM.List(ctx, d.uuidPrefix())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, found := range devices {
		name := strings.TrimPrefix(found.UUID, d.uuidPrefix())
		for _, part := range d.Parts {
			name = strings.TrimSuffix(name, part)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
