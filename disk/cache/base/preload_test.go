package base

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
)

type limit struct {
	mu    sync.Mutex
	asked []int
	err   error
}

func (l *limit) Wait(_ context.Context, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, n)
	return l.err
}

func TestPreloadBringsChunksInTheirOrder(t *testing.T) {
	b := newBench(t, content(strings.Repeat("d", 40)+"zz"+strings.Repeat("d", 8), 9))
	o := b.open(nil)
	b.check(o.Reader(nil), 3*chunk, chunk)
	before := b.repo.fetched()
	var l limit
	var last, total int64
	err := o.Preload(context.Background(), []int{30, 31, 32, 3, 49, 40, 7}, &l, func(d, n int64) {
		if d < last {
			t.Errorf("%d done after %d", d, last)
		}
		last, total = d, n
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(6*chunk - 9); last != want || total != want {
		t.Errorf("%d of %d done instead of %d", last, total, want)
	}
	slices.Sort(l.asked)
	if !slices.Equal(l.asked, []int{chunk - 9, chunk, 3 * chunk}) || b.repo.fetched()-before != 5*chunk-9 {
		t.Errorf("asked for %v, fetched %d", l.asked, b.repo.fetched()-before)
	}
	if !b.hits(o.Reader(nil), 30*chunk, 3*chunk) || !b.hits(o.Reader(nil), 49*chunk, chunk-9) {
		t.Error("not here")
	}
	asked := len(l.asked)
	if err := o.Preload(context.Background(), []int{30, 31}, &l, nil); err != nil || len(l.asked) != asked {
		t.Errorf("what is here is not for nothing: %v", err)
	}
}

func TestPreloadErrors(t *testing.T) {
	b := newBench(t, content("dddd", 0))
	o := b.open(nil)
	ctx, cancel := context.WithCancel(context.Background())
	if err := o.Preload(ctx, []int{4}, nil, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("chunk that is not: %v", err)
	}
	if err := o.Preload(ctx, []int{1}, &limit{err: errors.New("no bandwidth")}, nil); err == nil || b.repo.fetched() != 0 {
		t.Errorf("limit: %v", err)
	}
	b.disk.Inject(faulty.Fault{Op: faulty.Write, Name: "data", Err: unix.ENOSPC})
	if err := o.Preload(ctx, []int{1}, nil, nil); !fault.Is(err, fault.OutOfSpace) {
		t.Errorf("full disk: %v", err)
	}
	b.disk.Heal()
	b.repo.wait = func(repo context.Context, _ int64) { cancel(); <-repo.Done() }
	if err := o.Preload(ctx, []int{2}, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestDemandGoesBeforePreload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Each chunk far from the others, so that each is one fetch; a fetch takes a second.
		b := newBench(t, content(strings.Repeat("dz", 100), 0))
		b.repo.wait = func(ctx context.Context, _ int64) {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
		o := b.open(func(c *cache.BaseConfig) { c.Patience = time.Hour })
		var order []int
		for i := 0; i < 160; i += 2 {
			order = append(order, i)
		}
		var all sync.WaitGroup
		all.Go(func() {
			if err := o.Preload(context.Background(), order, nil, nil); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(500 * time.Millisecond)
		if n := len(b.repo.offsets()); n != maxPreload {
			t.Errorf("%d fetches at once", n)
		}
		// 18 demands: 16 start at once beside what is under way, and until the last of them is done nobody else's
		// fetch starts but two at a time.
		began := time.Now()
		var slowest time.Duration
		var mu sync.Mutex
		for i := 160; i < 196; i += 2 {
			all.Go(func() {
				b.check(o.Reader(nil), int64(i)*chunk, 10)
				mu.Lock()
				defer mu.Unlock()
				slowest = max(slowest, time.Since(began))
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		preloads := 0
		for _, offset := range b.repo.offsets() {
			if offset < 160*chunk {
				preloads++
			}
		}
		if preloads > maxPreload+2*maxPreloadBusy {
			t.Errorf("%d preloads while demand waited", preloads)
		}
		all.Wait()
		if slowest > 2*time.Second {
			t.Errorf("demand waited %v", slowest)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
}
