package way

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/device"
	"hayloft/disk/localstore"
	"hayloft/internal/durable"
)

// Names of volumes: "12.0" is disk 0 of machine 12, "12.0.cache" what its kernel cache has, "base.HEX" a whole image; with
// ".part" after it one that is not whole yet.
const (
	basePrefix  = "base."
	partSuffix  = ".part"
	cacheSuffix = ".cache"
)

func volumeName(machine, id int) string { return fmt.Sprintf("%d.%d", machine, id) }

// machineOf is the machine that a volume belongs to by its name.
func machineOf(volume string) (machine int, ok bool) {
	number, rest, ok := strings.Cut(volume, ".")
	if !ok {
		return 0, false
	}
	rest = strings.TrimSuffix(strings.TrimSuffix(rest, cacheSuffix), partSuffix)
	machine, err1 := strconv.Atoi(number)
	id, err2 := strconv.Atoi(rest)
	return machine, err1 == nil && err2 == nil && volumeName(machine, id) == number+"."+rest
}

// volumes is the local store's space in volumes, once what a crash left of bases there has gone.
func (w *Way) volumes(ctx context.Context) (localstore.Volumes, error) {
	if w.config.Volumes == nil {
		return nil, fault.Errorf(fault.Unsupported, "this host gives out no volumes (LS_MAD)")
	}
	unlock, err := w.lock(ctx, "sweep of volumes")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if w.swept {
		return w.config.Volumes, nil
	}
	if err := w.sweepParts(ctx); err != nil {
		return nil, err
	}
	w.swept = true
	return w.config.Volumes, nil
}

func (w *Way) sweepParts(ctx context.Context) error {
	if err := durable.Sweep(filepath.Dir(w.indexPath(basePrefix))); err != nil {
		return err
	}
	list, err := w.config.Volumes.List(ctx)
	if err != nil {
		return err
	}
	for _, v := range list {
		if strings.HasPrefix(v.Name, basePrefix) && strings.HasSuffix(v.Name, partSuffix) {
			if err := w.config.Volumes.Unprovision(ctx, v.Name); err != nil {
				return err
			}
			w.config.Log.Info("what a crash left of a base is removed", "volume", v.Name)
		}
	}
	return nil
}

// place puts a disk that has bytes of its own where this host keeps those: in a volume, or a file. A whole clone
// needs no overlay then: it is a volume of its own.
func (w *Way) place(machine int, d *diskRecord) {
	if w.config.Volumes == nil {
		return
	}
	if d.Kind == overlay && d.Mode == cache.Offline {
		d.Kind = copied
	}
	if d.isOwn() {
		d.Volume = volumeName(machine, d.ID)
	}
}

// isOwn reports whether the disk is bytes of the machine's own, in a file or volume.
func (d *diskRecord) isOwn() bool { return d.Kind == overlay || d.Kind == copied || d.Kind == volatile }

// isClone reports whether it was made from an image.
func (k kind) isClone() bool { return k == overlay || k == copied }

// ownPath is where a machine's own part of a disk is: a file, a block device, or for trees a directory.
func (w *Way) ownPath(ctx context.Context, dir string, d *diskRecord) (string, error) {
	if d.Volume == "" {
		return diskPath(dir, d.ID), nil
	}
	volumes, err := w.volumes(ctx)
	if err != nil {
		return "", err
	}
	v, err := volumes.Find(ctx, d.Volume)
	return v.Path, err
}

// hadVolume is the volume of a disk that has its content, ready for the machine to use.
func (p *preparation) hadVolume(ctx context.Context, d *diskRecord, size int64) (localstore.Volume, error) {
	volumes, err := p.way.volumes(ctx)
	if err == nil {
		_, err = volumes.Find(ctx, d.Volume) // an empty one in its place would not be what the machine had
	}
	if err != nil {
		return localstore.Volume{}, err
	}
	return p.way.provision(ctx, p.spec(d, size))
}

// newVolume makes a disk's volume of size bytes, and remembers durably when it has its content. Nobody knows what is in one
// that is there already: it goes. Without fillers of its own the volume reads as zeros where write does not write.
func (p *preparation) newVolume(ctx context.Context, d *diskRecord, size int64, write func(*os.File) error) (v localstore.Volume, err error) {
	if _, err = p.beginVolume(ctx, d); err != nil {
		return v, err
	}
	if v, err = p.way.provision(ctx, p.spec(d, size)); err != nil {
		return v, err
	}
	if err := writeVolume(v, write); err != nil {
		return v, err
	}
	return v, p.filled(ctx, d)
}

// newRawVolume is newVolume for who writes all that will ever be read, durably, zeros too unless the volume has them:
// nothing is wiped first. Until then it has another name.
func (p *preparation) newRawVolume(ctx context.Context, d *diskRecord, size int64, write func(localstore.Volume) error) (v localstore.Volume, err error) {
	volumes, err := p.beginVolume(ctx, d)
	if err != nil {
		return v, err
	}
	s := p.spec(d, size)
	s.Name, s.Raw = d.Volume+partSuffix, true
	if v, err = p.way.provision(ctx, s); err != nil {
		return v, err
	}
	if err := write(v); err != nil {
		return v, err
	}
	if v, err = volumes.Rename(ctx, s.Name, d.Volume); err != nil {
		return v, err
	}
	return v, p.filled(ctx, d)
}

// beginVolume removes what there is of a volume that never got its content, and has it removed when this fails.
func (p *preparation) beginVolume(ctx context.Context, d *diskRecord) (localstore.Volumes, error) {
	volumes, err := p.way.volumes(ctx)
	if err != nil {
		return nil, err
	}
	list, err := volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	names := []string{d.Volume, d.Volume + partSuffix}
	for _, v := range list {
		if slices.Contains(names, v.Name) {
			if err := volumes.Unprovision(ctx, v.Name); err != nil {
				return nil, err
			}
		}
	}
	p.back.Push(func() error {
		ctx := context.WithoutCancel(ctx)
		return p.keepWhenStuck(errors.Join(takeBack(ctx, volumes, names[0]), takeBack(ctx, volumes, names[1])))
	})
	return volumes, nil
}

// takeBack removes a volume that was to be made, unless its name is somebody else's: who could not make it has said so.
func takeBack(ctx context.Context, volumes localstore.Volumes, name string) error {
	err := volumes.Unprovision(ctx, name)
	if fault.Is(err, fault.Busy) {
		if _, others := volumes.Find(ctx, name); fault.Is(others, fault.Busy) {
			return nil
		}
	}
	return err
}

func (p *preparation) spec(d *diskRecord, size int64) localstore.VolumeSpec {
	return localstore.VolumeSpec{Name: d.Volume, Size: size, UID: p.request.UID, GID: p.request.GID}
}

// writeVolume writes a volume's content durably.
func writeVolume(v localstore.Volume, write func(*os.File) error) error {
	f, err := os.OpenFile(v.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (p *preparation) filled(ctx context.Context, d *diskRecord) error {
	d.Made = true
	return p.way.putRecord(ctx, p.record)
}

// deviceOf is what a hypervisor is handed of a volume.
func deviceOf(v localstore.Volume, format device.Format, readOnly bool) device.Device {
	d := device.Device{Kind: device.File, Path: v.Path, Format: format, ReadOnly: readOnly}
	if v.Block {
		d.Kind = device.Block
	}
	return d
}

// fixed is a volume as the target of who would make a file as long as it likes.
type fixed struct {
	*os.File
	size  int64
	zeros bool // reads as zeros
}

// Truncate has as many bytes read as zeros: a volume has its length.
func (f fixed) Truncate(size int64) error {
	if size > f.size {
		return fault.Errorf(fault.OutOfSpace, "volume %s has %d bytes, %d are needed", f.Name(), f.size, size)
	}
	if f.zeros {
		return nil
	}
	return zeroRange(f.File, 0, size)
}

// lengthOf is how many bytes a file or block device has.
func lengthOf(f *os.File) (int64, error) {
	fi, err := f.Stat()
	if err != nil || fi.Mode().IsRegular() {
		return fi.Size(), err
	}
	return f.Seek(0, io.SeekEnd)
}

func isBlock(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0
}

// dropVolumes returns the space of a machine's volumes, those that no record names among them.
func (w *Way) dropVolumes(ctx context.Context, machine int, r *record) error {
	if w.config.Volumes == nil {
		if r != nil {
			for _, d := range r.Disks {
				if d.Volume != "" {
					return fault.Errorf(fault.Unsupported, "disk %d is volume %s, and this host gives out no volumes (LS_MAD)", d.ID, d.Volume)
				}
			}
		}
		return nil
	}
	if err := w.unmake(ctx, r); err != nil {
		return err
	}
	volumes, err := w.volumes(ctx)
	if err != nil {
		return err
	}
	list, err := volumes.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range list {
		if of, ok := machineOf(v.Name); ok && of == machine {
			errs = append(errs, volumes.Unprovision(ctx, v.Name))
		}
	}
	return errors.Join(errs...)
}

// unmake remembers that a machine's volumes are on their way out: from here on nothing in them counts.
func (w *Way) unmake(ctx context.Context, r *record) error {
	if r == nil || !slices.ContainsFunc(r.Disks, func(d diskRecord) bool { return d.Made }) {
		return nil
	}
	for i := range r.Disks {
		r.Disks[i].Made = false
	}
	return w.putRecord(ctx, r)
}

// machinesOfVolumes lists machines that have volumes here.
func (w *Way) machinesOfVolumes(ctx context.Context) ([]int, error) {
	if w.config.Volumes == nil {
		return nil, nil
	}
	list, err := w.config.Volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	var machines []int
	for _, v := range list {
		if m, ok := machineOf(v.Name); ok {
			machines = append(machines, m)
		}
	}
	return machines, nil
}

// Capacity implements disk.Way. Bases in volumes that nobody uses make room when it is needed, so they are free.
func (w *Way) Capacity(ctx context.Context) (disk.Capacity, error) {
	if w.config.Volumes == nil {
		return w.store.Capacity(ctx)
	}
	c, err := w.config.Volumes.Capacity(ctx)
	if err != nil {
		return c, err
	}
	list, err := w.config.Volumes.List(ctx)
	if err != nil {
		return c, err
	}
	for _, v := range list {
		if strings.HasPrefix(v.Name, basePrefix) && !w.isPinned(v.Name) {
			c.Free, c.Used = min(c.Total, c.Free+v.Size), max(0, c.Used-v.Size)
		}
	}
	return c, nil
}
