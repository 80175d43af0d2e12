package agent

import (
	"context"
	"slices"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/wire"
)

func wanted(id int64, serial uint64) *wire.Prefetch {
	return &wire.Prefetch{Serial: serial, Rate: id * 100, Image: &wire.Image{Id: id, Name: string(rune('a' + id)), Repository: &wire.Repository{}}}
}

// fetchReport waits for the end of a prefetch.
func (b *bench) fetchReport(image int64, serial uint64) *wire.PrefetchReport {
	b.t.Helper()
	deadline := time.After(patience)
	for {
		for _, r := range b.agent.prefetches.take() {
			if r.Image == image && r.Serial == serial && r.Ended {
				return r
			}
		}
		select {
		case <-b.agent.prefetches.news:
		case <-deadline:
			b.t.Fatalf("image %d is never reported", image)
		}
	}
}

func TestPrefetchesAreBroughtInOrder(t *testing.T) {
	b := newBench(t)
	b.begin()
	b.agent.prefetches.want([]*wire.Prefetch{wanted(2, 1), wanted(1, 7)})
	last := b.fetchReport(1, 7)
	if last.Error != "" || last.Done != 8 || last.Total != 8 {
		t.Errorf("report: %v", last)
	}
	b.w.set(func() {
		if want := []string{"c@200", "b@100"}; !slices.Equal(b.w.fetched, want) {
			t.Errorf("brought %v, want %v", b.w.fetched, want)
		}
		b.w.fetched = nil
	})
	// Told again, as in a new session: reported again, and not brought again. Another serial begins anew.
	b.agent.prefetches.want([]*wire.Prefetch{wanted(1, 7), wanted(2, 2)})
	b.fetchReport(1, 7)
	b.agent.prefetches.want([]*wire.Prefetch{wanted(1, 7), wanted(2, 2)})
	b.fetchReport(2, 2)
	b.w.set(func() {
		if want := []string{"c@200"}; !slices.Equal(b.w.fetched, want) {
			t.Errorf("brought again %v, want %v", b.w.fetched, want)
		}
	})
}

func TestPrefetchThatFails(t *testing.T) {
	b := newBench(t)
	b.w.fetching = func(context.Context, disk.Image, func(disk.Progress)) error {
		return fault.Errorf(fault.OutOfSpace, "LS_MAX")
	}
	b.begin()
	b.agent.prefetches.want([]*wire.Prefetch{wanted(1, 1)})
	if r := b.fetchReport(1, 1); r.Error != "LS_MAX" || r.ErrorClass != "out-of-space" {
		t.Errorf("report: %v", r)
	}
}

// What is wanted no longer stops, and the next one begins; the progress of what goes on is told.
func TestPrefetchThatIsCancelled(t *testing.T) {
	b := newBench(t)
	began := make(chan struct{}, 1)
	b.w.fetching = func(ctx context.Context, i disk.Image, report func(disk.Progress)) error {
		if i.ID != 1 {
			return nil
		}
		report(disk.Progress{Done: 3, Total: 9})
		began <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	b.begin()
	b.agent.prefetches.want([]*wire.Prefetch{wanted(1, 1), wanted(2, 1)})
	<-began
	if r := b.agent.prefetches.take(); len(r) != 1 || r[0].Done != 3 || r[0].Total != 9 || r[0].Ended {
		t.Errorf("under way: %v", r)
	}
	b.agent.prefetches.want([]*wire.Prefetch{wanted(2, 1)})
	b.fetchReport(2, 1)
	b.w.set(func() {
		if want := []string{"c@200"}; !slices.Equal(b.w.fetched, want) {
			t.Errorf("brought %v, want %v", b.w.fetched, want)
		}
	})
	// An agent that ends in the middle of one says nothing of it; the next one does it again.
	b.agent.prefetches.want([]*wire.Prefetch{wanted(1, 2)})
	<-began
	b.stop()
	b.w.fetching = nil
	b.begin()
	b.agent.prefetches.want([]*wire.Prefetch{wanted(1, 2)})
	b.fetchReport(1, 2)
}
