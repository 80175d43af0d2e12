package base

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
)

// TestReadersAmidFaults has many readers read while the local disk fails now and then, syncs that fail undo what
// was written, the repository lies and is away now and then, chunks are evicted, and the power goes.
func TestReadersAmidFaults(t *testing.T) {
	data := content(strings.Repeat("dddzdabdd", 12), 1000)
	for round := range 6 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			b := newBench(t, data)
			b.disk = faulty.New(uint64(round))
			capacity := []int64{0, 20 * chunk, 50 * chunk}[round%3]
			open := func() *base {
				return b.open(func(c *cache.BaseConfig) { c.Capacity = capacity; c.Patience = time.Minute })
			}
			var mu sync.Mutex
			lies := rand.New(rand.NewPCG(uint64(round), 7))
			b.repo.set(func(p []byte, _ int64) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				if lies.IntN(500) == 0 {
					clear(p)
					return 0, fault.Errorf(fault.Unavailable, "away")
				}
				return 0, nil
			})
			for life := range 3 {
				o := open()
				b.disk.ForgetDoubtful()
				if round%2 == 1 {
					for _, op := range []faulty.Op{faulty.Write, faulty.Sync, faulty.Punch, faulty.Read} {
						b.disk.Inject(faulty.Fault{Op: op, Name: "data", Err: unix.EIO, OneIn: 10})
					}
					b.disk.Inject(faulty.Fault{Op: faulty.Sync, Name: mapFile, Err: unix.EIO, OneIn: 5})
				}
				stop := make(chan struct{})
				var syncer, all sync.WaitGroup
				syncer.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							_ = o.Sync()
							time.Sleep(100 * time.Microsecond)
						}
					}
				})
				for k := range 6 {
					all.Go(func() {
						random := rand.New(rand.NewPCG(uint64(round*10+life), uint64(k)))
						r := o.Reader(nil)
						p := make([]byte, 4*chunk)
						for range 120 {
							q := p[:1+random.IntN(len(p)-1)]
							at := random.Int64N(int64(len(data) - len(q)))
							done, err := r.(export.Quick).TryReadAt(q, at)
							if !done {
								err = r.ReadAt(context.Background(), q, at)
							}
							if err != nil || !bytes.Equal(q, data[at:at+int64(len(q))]) {
								t.Errorf("read at %d, hit %v: wrong bytes, %v", at, done, err)
								return
							}
						}
					})
				}
				all.Wait()
				close(stop)
				syncer.Wait()
				b.disk.Crash()
				_ = o.Close()
				b.disk.Cut()
			}
			o := open()
			r := o.Reader(nil)
			for i := range b.index.Chunks() {
				at, n := b.index.Range(i)
				b.try(r, at, n)
			}
			b.check(r, 0, len(data))
		})
	}
}
