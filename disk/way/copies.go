package way

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/fastcopy"
	"hayloft/disk/localstore"
	"hayloft/image"
)

// The numbers of copies at a time that a host makes unless it is told otherwise.
const (
	defaultCopies              = 4
	defaultCopiesPerRepository = 2
)

// newLimiter bounds how many whole images are copied into volumes at a time: on this host, and from each repository.
func newLimiter(host, each int) *fastcopy.Limiter {
	if host <= 0 {
		host = defaultCopies
	}
	if each <= 0 {
		each = defaultCopiesPerRepository
	}
	return fastcopy.NewLimiter(host, each)
}

// copyWhole copies what index describes into a volume, verified chunk by chunk, in its turn among those from the same
// place, and has the volume read as zeros from there to size. All is durable then.
func (w *Way) copyWhole(ctx context.Context, from string, src io.ReaderAt, index *image.Index, v localstore.Volume, size int64, report func(done, total int64)) (read int64, err error) {
	if index.Length() > size {
		return 0, fault.Errorf(fault.Corrupt, "has %d bytes instead of %d", index.Length(), size)
	}
	leave, err := w.copies.Acquire(ctx, from, nil)
	if err != nil {
		return 0, err
	}
	defer leave()
	r, err := fastcopy.ToPath(ctx, v.Path, fastcopy.Spec{Source: src, Index: index, Zeros: v.Zeros,
		Report: func(p fastcopy.Progress) { report(p.Done, p.Total) }})
	if err != nil || v.Zeros {
		return r.Read, err
	}
	return r.Read, writeVolume(v, func(f *os.File) error { return zeroRange(f, index.Length(), size-index.Length()) })
}

// rated turns bytes of one step into progress that says how fast it is.
func rated(step string, report func(disk.Progress)) func(done, total int64) {
	var (
		mu       sync.Mutex
		at       time.Time // of the last measurement
		before   int64
		rate     int64
		reported bool
	)
	return func(done, total int64) {
		mu.Lock()
		now := time.Now()
		switch passed := now.Sub(at); {
		case !reported || done < before:
			at, before, reported = now, done, true
		case passed >= time.Second:
			rate = int64(float64(done-before) / passed.Seconds())
			at, before = now, done
		}
		r := rate
		mu.Unlock()
		report(disk.Progress{Step: step, Done: done, Total: total, Rate: r})
	}
}
