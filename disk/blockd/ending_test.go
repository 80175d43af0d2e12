package blockd

import (
	"context"
	"sync"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/volume"
)

// stuck is a volume that cannot be closed, or loaded, as long as that is so.
type stuck struct {
	cache.Volume
	bench *stuckBench
}

type stuckBench struct {
	mu     sync.Mutex
	is     bool
	opened int
}

func (b *stuckBench) set(is bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.is = is
}

func (b *stuckBench) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opened
}

func (b *stuckBench) why() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.is {
		return fault.Errorf(fault.Unavailable, "the source does not answer")
	}
	return nil
}

func (b *stuckBench) open(ctx context.Context, c cache.VolumeConfig) (cache.Volume, error) {
	v, err := volume.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened++
	return stuck{v, b}, nil
}

func (s stuck) Close() error {
	if err := s.bench.why(); err != nil {
		return err
	}
	return s.Volume.Close()
}

func (s stuck) Discard(ctx context.Context) error {
	if err := s.bench.why(); err != nil {
		return err
	}
	return s.Volume.Discard(ctx)
}

func (s stuck) Load(ctx context.Context, bytes int64, report func(done, total int64)) error {
	if err := s.bench.why(); err != nil {
		return err
	}
	return s.Volume.Load(ctx, bytes, report)
}

// TestUnexportThatFails: an export that could not be ended is no export any more, and its volume is not opened a second time
// before the first has been closed.
func TestUnexportThatFails(t *testing.T) {
	for name, end := range map[string]func(*Daemon) error{
		"unexport": func(d *Daemon) error { return d.Unexport(context.Background(), "12.0") },
		"discard":  func(d *Daemon) error { return d.Discard(context.Background(), "12.0") },
	} {
		t.Run(name, func(t *testing.T) {
			b, s := newBench(t), &stuckBench{}
			b.config.Volume = s.open
			img, want := b.persistent("mine", 2)
			d := b.daemon()
			e := b.volumeExport("12.0", img, cache.Through)
			must(t, d.Export(t.Context(), e))
			s.set(true)
			for range 2 {
				class(t, name, end(d), fault.Unavailable)
			}
			class(t, "export", d.Export(t.Context(), e), fault.Unavailable)
			if n := s.count(); n != 1 {
				t.Errorf("opened %d times", n)
			}
			s.set(false)
			must(t, d.Export(t.Context(), e))
			if string(readAll(t, dial(t, e.Path))) != string(want) {
				t.Error("reads differ")
			}
			must(t, end(d))
			if status, _ := d.Status(t.Context()); len(status.Exports) != 0 {
				t.Errorf("%+v", status.Exports)
			}
		})
	}
}

// TestExportThatFails: the same of one that was never made.
func TestExportThatFails(t *testing.T) {
	b, s := newBench(t), &stuckBench{is: true}
	b.config.Volume = s.open
	img, want := b.persistent("mine", 2)
	d := b.daemon()
	e := b.volumeExport("12.0", img, cache.Through)
	e.Volume.Load = chunk
	for range 2 {
		class(t, "export", d.Export(t.Context(), e), fault.Unavailable)
	}
	if n := s.count(); n != 1 {
		t.Errorf("opened %d times", n)
	}
	s.set(false)
	must(t, d.Export(t.Context(), e))
	if string(readAll(t, dial(t, e.Path))) != string(want) {
		t.Error("reads differ")
	}
	must(t, d.Unexport(t.Context(), "12.0"))
}

// TestSettledAfterAnEndThatFailed: an export that could not be ended is settled when that is asked for again, and ended then.
func TestSettledAfterAnEndThatFailed(t *testing.T) {
	for name, end := range map[string]func(*Daemon) error{
		"unexport": func(d *Daemon) error { return d.Unexport(context.Background(), "12.0") },
		"discard":  func(d *Daemon) error { return d.Discard(context.Background(), "12.0") },
	} {
		t.Run(name, func(t *testing.T) {
			b, s := newBench(t), &stuckBench{}
			b.config.Volume = s.open
			img, _ := b.persistent("mine", 2)
			d := b.daemon()
			must(t, d.Export(t.Context(), b.volumeExport("12.0", img, cache.Back)))
			s.set(true)
			class(t, name, end(d), fault.Unavailable)
			class(t, "settle", d.Settle(t.Context(), "12.0", nil), fault.Unavailable)
			s.set(false)
			must(t, d.Settle(t.Context(), "12.0", nil))
			must(t, end(d))
			if status, _ := d.Status(t.Context()); len(status.Exports) != 0 {
				t.Errorf("%+v", status.Exports)
			}
		})
	}
}
