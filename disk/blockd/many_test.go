package blockd

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/export/nbd"
)

// TestManyAtATime: whatever is asked in whatever order, calls end, with errors that are of this world, and after a
// restart there is what was last said to be.
func TestManyAtATime(t *testing.T) {
	b := newBench(t)
	var images []disk.Image
	for i := range 3 {
		images = append(images, b.image(i, fmt.Sprintf("base-%d", i), content(24*chunk, uint64(i))))
	}
	mine, _ := b.persistent("mine", 9)
	exports := []Export{b.volumeExport("v", mine, cache.Back)}
	for i := range 6 {
		e := b.baseExport(fmt.Sprintf("b%d", i), images[i%3])
		e.Record = i%2 == 0
		exports = append(exports, e)
	}
	for round := range 3 {
		d := b.daemon()
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		var group sync.WaitGroup
		for w := range 8 {
			group.Go(func() {
				r := rand.New(rand.NewPCG(uint64(round), uint64(w)))
				for ctx.Err() == nil {
					one(ctx, t, d, r, exports, images)
				}
			})
		}
		if round == 1 { // ends while it is asked
			must(t, d.Close())
		}
		group.Wait()
		cancel()
		must(t, d.Close())
	}
	d := b.daemon()
	for _, e := range exports {
		must(t, d.Export(t.Context(), e))
		c := dial(t, e.Path)
		if _, err := io.ReadFull(io.NewSectionReader(c, 0, c.Size()), make([]byte, c.Size())); err != nil {
			t.Error(e.Name, err)
		}
		c.Close()
		must(t, d.Unexport(t.Context(), e.Name))
	}
	for _, img := range images {
		must(t, d.DropBase(t.Context(), img.Digest))
	}
}

func one(ctx context.Context, t *testing.T, d *Daemon, r *rand.Rand, exports []Export, images []disk.Image) {
	e, img := exports[r.IntN(len(exports))], images[r.IntN(len(images))]
	var err error
	switch r.IntN(9) {
	case 0, 1:
		err = d.Export(ctx, e)
	case 2:
		err = d.Unexport(ctx, e.Name)
	case 3:
		err = d.Preload(ctx, Preload{Digest: img.Digest, Bytes: int64(r.IntN(20)) * chunk, Background: r.IntN(2) == 0}, nil)
	case 4:
		err = d.DropBase(ctx, img.Digest)
	case 5:
		_, err = d.Status(ctx)
	case 6:
		err = d.Settle(ctx, "v", nil)
	case 7:
		err = d.Discard(ctx, "v")
	case 8:
		c, failed := nbd.Dialer{Patience: 50 * time.Millisecond}.Dial(ctx, "unix", e.Path, "")
		if failed != nil {
			return
		}
		defer c.Close()
		if err = c.Read(ctx, make([]byte, 3*chunk), int64(r.IntN(20))*chunk); err == nil && !c.ReadOnly() {
			err = c.Write(ctx, make([]byte, 4096), int64(r.IntN(20))*chunk, false)
		}
	}
	switch fault.ClassOf(err) {
	case fault.NotFound, fault.Busy, fault.WrongState, fault.Unavailable:
	default:
		if err != nil && ctx.Err() == nil && d.ctx.Err() == nil {
			t.Error(err)
		}
	}
}
