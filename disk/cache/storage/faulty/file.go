package faulty

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// file is an open file of one run of the machine.
type file struct {
	disk  *Disk
	run   *run
	name  string
	inode *inode
}

func (f *file) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fault.Errorf(fault.Invalid, "read %s: offset %d", f.name, offset)
	}
	v := f.disk.begin(f.run, Read, f.name, offset)
	defer f.disk.mu.Unlock()
	if v.err == ErrPowerLost {
		return 0, v.err
	}
	size := int(max(0, min(int64(len(p)), f.inode.size-offset)))
	if v.err != nil {
		size = int(float64(size) * v.part)
	}
	f.inode.read(p[:size], offset)
	if v.err == nil && size < len(p) {
		return size, io.EOF
	}
	return size, v.err
}

func (f *file) WriteAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fault.Errorf(fault.Invalid, "write %s: offset %d", f.name, offset)
	}
	k := f.disk
	v := k.begin(f.run, Write, f.name, offset)
	defer k.mu.Unlock()
	size := int(float64(len(p)) * v.part)
	if k.capacity > 0 && f.inode.names > 0 {
		fits := int(f.inode.fits(offset, int64(size), (k.capacity-k.used)/Sector))
		if fits < size && v.err == nil {
			v.err = fmt.Errorf("write %s: %w", f.name, unix.ENOSPC)
		}
		size = fits
	}
	if v.err == ErrPowerLost {
		f.inode.torn = f.inode.torn || f.inode.tears(p, size, offset)
	}
	k.grow(f.inode, f.inode.write(p[:size], offset, k.sequence))
	if v.err == ErrPowerLost {
		return 0, v.err
	}
	return size, v.err
}

func (d *Disk) grow(n *inode, sectors int64) {
	if n.names > 0 {
		d.used += sectors * Sector
	}
}

func (f *file) Truncate(size int64) error {
	if size < 0 {
		return fault.Errorf(fault.Invalid, "truncate %s: %d", f.name, size)
	}
	v := f.disk.begin(f.run, Truncate, f.name, size)
	defer f.disk.mu.Unlock()
	if v.part > 0.5 {
		f.disk.grow(f.inode, f.inode.truncate(size, f.disk.sequence))
	}
	return v.err
}

func (f *file) Punch(offset, length int64) error {
	if offset < 0 || length < 0 {
		return fault.Errorf(fault.Invalid, "punch %s: %d bytes at %d", f.name, length, offset)
	}
	v := f.disk.begin(f.run, Punch, f.name, offset)
	defer f.disk.mu.Unlock()
	if v.err != nil {
		length = int64(float64(length) * v.part)
	}
	f.disk.grow(f.inode, f.inode.zero(offset, length, f.disk.sequence))
	return v.err
}

func (f *file) Sync() error {
	k := f.disk
	v := k.begin(f.run, Sync, f.name, 0)
	defer k.mu.Unlock()
	switch {
	case v.err == nil:
		f.inode.sync()
	case v.err == ErrPowerLost && f.run.dead && v.part == 1:
		f.inode.sync()
	case v.err != ErrPowerLost:
		k.grow(f.inode, f.inode.doubt(func(sector int64) bool {
			return k.evil && k.chance(f.inode.id, uint64(sector), k.sequence)%2 == 0
		}))
	}
	return v.err
}

func (f *file) Size() (int64, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.run.dead || f.run != f.disk.run {
		return 0, ErrPowerLost
	}
	return f.inode.size, nil
}

func (f *file) Close() error { return nil }
