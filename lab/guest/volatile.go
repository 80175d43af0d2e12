package guest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"hayloft/disk/export"
	"hayloft/disk/export/nbd"
)

const (
	// sector is what a disk writes as a whole or not at all, in bytes.
	sector = 512
	// throughSize is the size of a request, in bytes, from which on zeros go to the disk at once, as a disk may.
	throughSize = 4 << 20
)

// volatile is a disk with a write cache that loses power: what was written and not flushed is kept or lost, sector by
// sector. The file always has the newest content; before remembers what sectors had when they were last durable.
type volatile struct {
	*nbd.File
	file   *os.File
	mutex  sync.Mutex
	before map[int64][]byte // by number of the sector; those that were not flushed since they were written
}

var _ export.Device = (*volatile)(nil)

// newVolatile makes a disk of a file, which is the disk's to close.
func newVolatile(file *os.File) (*volatile, error) {
	device, err := nbd.NewFile(file, false)
	if err != nil {
		return nil, err
	}
	return &volatile{File: device, file: file, before: map[int64][]byte{}}, nil
}

// TryReadAt and its like of package nbd's File would go round the write cache.
func (v *volatile) TryReadAt(p []byte, offset int64) (bool, error) { return false, nil }

// TryWriteAt implements export.Quick.
func (v *volatile) TryWriteAt(p []byte, offset int64) (bool, error) { return false, nil }

// TryFile implements export.Quick.
func (v *volatile) TryFile(offset int64, length int) (uintptr, int64, bool) { return 0, 0, false }

// WriteAt implements export.Device.
func (v *volatile) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	if err := v.remember(offset, int64(len(p))); err != nil {
		return err
	}
	if err := v.File.WriteAt(ctx, p, offset, false); err != nil {
		return err
	}
	if fua {
		v.settle(offset, int64(len(p)))
	}
	return nil
}

// Zero implements export.Device.
func (v *volatile) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	if length < throughSize {
		if err := v.remember(offset, length); err != nil {
			return err
		}
	}
	durable := z.FUA || length >= throughSize
	z.FUA = false
	if err := v.File.Zero(ctx, offset, length, z); err != nil {
		return err
	}
	if durable {
		v.settle(offset, length)
	}
	return nil
}

// Flush implements export.Device. The file itself is not flushed: the machine that keeps it does not lose power.
func (v *volatile) Flush(context.Context) error {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	clear(v.before)
	return nil
}

// remember keeps what is durable of a range that is about to change.
func (v *volatile) remember(offset, length int64) error {
	for n := offset / sector; n*sector < offset+length; n++ {
		if _, have := v.before[n]; have {
			continue
		}
		old := make([]byte, sector)
		if _, err := v.file.ReadAt(old, n*sector); err != nil {
			return fmt.Errorf("write cache: %w", err)
		}
		v.before[n] = old
	}
	return nil
}

// settle makes a range durable; sectors that reach beyond it too, which a disk may do.
func (v *volatile) settle(offset, length int64) {
	if length/sector > int64(len(v.before)) {
		for n := range v.before {
			if n >= offset/sector && n*sector < offset+length {
				delete(v.before, n)
			}
		}
		return
	}
	for n := offset / sector; n*sector < offset+length; n++ {
		delete(v.before, n)
	}
}

// lose is the power cut: of what was not flushed, each run of sectors, of a random length, is kept or lost. It
// returns how many sectors were not flushed, and how many of them were lost.
func (v *volatile) lose(random *rand.Rand) (dirty, lost int, err error) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	dirty = len(v.before)
	chance := 0.9 * random.Float64() // a disk may be late, or nearly done
	var errs []error
	for run, keep := range runs(v.before, random, chance) {
		if keep {
			continue
		}
		for _, n := range run {
			_, err := v.file.WriteAt(v.before[n], n*sector)
			errs = append(errs, err)
			lost++
		}
	}
	clear(v.before)
	return dirty, lost, errors.Join(errs...)
}
