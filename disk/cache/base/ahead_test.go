package base

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slow has each fetch take a millisecond; run in a synctest bubble.
func (b *bench) slow(d time.Duration) {
	b.repo.wait = func(ctx context.Context, _ int64) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
}

func TestSequentialReadersGetReadAhead(t *testing.T) {
	data := content(strings.Repeat("d", 2048), 0) // 8 MiB
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, data)
		b.slow(time.Millisecond)
		o := b.open(nil)
		r := o.Reader(nil)
		const piece = 32 << 10
		began := time.Now()
		hits := 0
		for at := int64(0); at < r.Size(); at += piece {
			if b.try(r, at, piece) {
				hits++
			} else {
				b.check(r, at, piece)
			}
			time.Sleep(100 * time.Microsecond) // the reader's own work
		}
		took := time.Since(began)
		pieces := len(data) / piece
		if without := time.Duration(pieces) * time.Millisecond; took > without/4 {
			t.Errorf("%d pieces took %v with %d hits; one by one they take %v", pieces, took, hits, without)
		}
		if b.repo.fetched() != int64(len(data)) {
			t.Errorf("fetched %d of %d", b.repo.fetched(), len(data))
		}
		o.Close()
	})
}

func TestTheWindowGrowsAndIsBounded(t *testing.T) {
	var s streams
	const size = 64 << 20
	largest, first, end := int64(0), int64(0), int64(0)
	for at := int64(0); at < size; at += 64 << 10 {
		from, to := s.next(at, 64<<10, size, 64<<10, lastAhead, at >= end)
		if from == to {
			continue
		}
		if first == 0 {
			first = to - at - 64<<10
		}
		if to-at-64<<10 > max(firstAhead, at+64<<10) {
			t.Fatalf("reads ahead to %d at %d: more than was read", to, at)
		}
		largest, end = max(largest, to-at-64<<10), to
	}
	if first != firstAhead || largest != lastAhead || end != size {
		t.Fatalf("window from %d to %d, end %d", first, largest, end)
	}
}

func TestStreamsSideBySideAndOutOfOrder(t *testing.T) {
	var s streams
	const size, far = 1 << 30, 256 << 20
	started := map[int64]bool{}
	for i := int64(0); i < 8; i++ {
		for k := range int64(streamsOf) {
			at := k*far + (i^1)*65536 // pairs are swapped
			if from, to := s.next(at, 65536, size, 65536, lastAhead, true); from < to {
				started[k] = true
			}
		}
	}
	if len(started) != streamsOf {
		t.Fatalf("streams seen: %v", started)
	}
}

func TestRandomReadersAndHitsGetNone(t *testing.T) {
	b := newBench(t, content(strings.Repeat("d", 4096), 0)) // 16 MiB
	o := b.open(nil)
	r := o.Reader(nil)
	random := rand.New(rand.NewPCG(1, 2))
	for at := int64(0); at < 5; at++ {
		b.check(r, at*3<<20+random.Int64N(1000), 100) // each 3 MiB from the last
	}
	if b.repo.fetched() != 5*chunk {
		t.Fatalf("fetched %d for five random reads", b.repo.fetched())
	}
	// What a preload brought is read in sequence: nothing beyond it is fetched.
	var chunks []int
	for i := 1000; i < 1200; i++ {
		chunks = append(chunks, i)
	}
	if err := o.Preload(context.Background(), chunks, nil, nil); err != nil {
		t.Fatal(err)
	}
	before := b.repo.fetched()
	for i := int64(1000); i < 1200; i++ {
		if !b.hits(r, i*chunk, chunk) {
			t.Fatalf("chunk %d is not here", i)
		}
	}
	if err := o.Close(); err != nil || b.repo.fetched() != before {
		t.Fatalf("fetched %d more: %v", b.repo.fetched()-before, err)
	}
}
