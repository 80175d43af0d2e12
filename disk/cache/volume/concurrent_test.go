package volume

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"hayloft/disk/cache"
	"hayloft/disk/export"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// Clients share chunks, but not bytes: each always reads what it wrote, whatever the others, eviction, draining and
// settling do meanwhile.
func TestManyClients(t *testing.T) {
	const clients, stripe = 6, 3000
	for _, mode := range allModes {
		for _, limited := range []bool{false, true} {
			if limited && mode == cache.Offline {
				continue
			}
			t.Run(fmt.Sprintf("%s limited %v", mode, limited), func(t *testing.T) {
				t.Parallel()
				size := int64(24*chunkSize + 100)
				capacity := int64(0)
				if limited {
					capacity = 4 * chunkSize
					if mode == cache.Back {
						capacity = minLog + 4*chunkSize
					}
				}
				b := newBench(t.Fatalf, 5, size, size-chunkSize-10, mode, capacity)
				b.config.Patience = 2 * time.Minute // for the log, on a machine with much else to do
				b.open()
				want := bytes.Clone(b.original)
				var work sync.WaitGroup
				stop := make(chan struct{})
				for client := range clients {
					work.Go(func() {
						r := rand.New(rand.NewPCG(uint64(client), 1))
						for i := range 400 {
							if err := oneOperation(b.volume, r, want, client, clients, stripe, byte(i)); err != nil {
								t.Errorf("client %d, operation %d: %v", client, i, err)
								return
							}
						}
					})
				}
				var settler sync.WaitGroup
				settler.Go(func() {
					for {
						select {
						case <-stop:
							return
						case <-time.After(3 * time.Millisecond):
						}
						if err := b.volume.Settle(context.Background(), nil); err != nil {
							t.Errorf("settle: %v", err)
							return
						}
					}
				})
				work.Wait()
				close(stop)
				settler.Wait()
				if t.Failed() {
					b.volume.Close()
					return
				}
				if i := differ(b.read(0, int(size)), want); i >= 0 {
					t.Errorf("reads differ at byte %d", i)
				}
				b.close()
				b.open()
				if i := differ(b.read(0, int(size)), want); i >= 0 {
					t.Errorf("after it was opened again, reads differ at byte %d", i)
				}
				b.check("settle", b.volume.Settle(context.Background(), nil))
				b.inSource(want)
				b.close()
			})
		}
	}
}

func oneOperation(v cache.Volume, r *rand.Rand, want []byte, client, clients, stripe int, seed byte) error {
	ctx := context.Background()
	n := (len(want)/stripe - client + clients - 1) / clients
	start := (r.IntN(n)*clients + client) * stripe
	offset := start + r.IntN(stripe)
	length := 1 + r.IntN(start+stripe-offset)
	if length = min(length, len(want)-offset); length <= 0 {
		return nil
	}
	mine := want[offset : offset+length]
	switch r.IntN(10) {
	case 0, 1, 2, 3:
		copy(mine, pattern(length, seed+byte(client)))
		if q := v.(export.Quick); r.IntN(2) == 0 {
			if done, err := q.TryWriteAt(mine, int64(offset)); done {
				return err
			}
		}
		return v.WriteAt(ctx, mine, int64(offset), r.IntN(8) == 0)
	case 4:
		clear(mine)
		return v.Zero(ctx, int64(offset), int64(length), export.ZeroFlags{Trim: r.IntN(2) == 0})
	case 5:
		return v.Flush(ctx)
	case 6:
		return v.Prefetch(ctx, int64(offset), int64(length))
	}
	got := make([]byte, length)
	if err := v.ReadAt(ctx, got, int64(offset)); err != nil {
		return err
	}
	if i := differ(got, mine); i >= 0 {
		return fmt.Errorf("byte %d differs", offset+i)
	}
	return nil
}
