package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/disk/cache"
	"hayloft/disk/export"
	"hayloft/disk/export/nbd"
)

// modes compares the cache modes over a slow repository: random writes of 4 KiB with a flush every 32.
type modes struct {
	Latency float64      `json:"source_latency_seconds"` // of each read, write, discard and sync
	Seconds float64      `json:"seconds_each"`
	Results []modeResult `json:"results"`
}

type modeResult struct {
	Mode   string    `json:"mode"`
	Depth  int       `json:"depth"`
	Writes []float64 `json:"writes_per_second"`
	Drain  []float64 `json:"seconds_to_drain"` // afterwards
	Median float64   `json:"median_writes_per_second"`
}

const (
	flushEvery = 32
	writeSize  = 4 << 10
)

// measureModes takes the modes in turn, round by round.
func measureModes(ctx context.Context, o options, dir string) (modes, error) {
	m := modes{Latency: o.latency.Seconds(), Seconds: o.time.Seconds()}
	for _, depth := range []int{1, 8} {
		for _, mode := range []cache.Mode{cache.None, cache.Through, cache.Back} {
			m.Results = append(m.Results, modeResult{Mode: string(mode), Depth: depth})
		}
	}
	for round := range o.rounds {
		for i := range m.Results {
			r := &m.Results[i]
			work := filepath.Join(dir, fmt.Sprintf("modes-%d-%d", round, i))
			if err := os.Mkdir(work, 0o700); err != nil {
				return m, err
			}
			writes, drain, err := measureMode(ctx, o, work, cache.Mode(r.Mode), r.Depth)
			if err = errors.Join(err, os.RemoveAll(work)); err != nil {
				return m, fmt.Errorf("%s: %w", r.Mode, err)
			}
			r.Writes, r.Drain = append(r.Writes, writes), append(r.Drain, drain)
			sorted := slices.Sorted(slices.Values(r.Writes))
			r.Median = sorted[len(sorted)/2]
		}
	}
	return m, nil
}

// measureMode returns writes a second and the seconds that draining took afterwards.
func measureMode(ctx context.Context, o options, dir string, mode cache.Mode, depth int) (writes, drain float64, err error) {
	f, err := os.OpenFile(o.file, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	source := &slowSource{fileSource{f}, o.latency}
	var device export.Device = &direct{source}
	settle := func() error { return nil }
	if mode != cache.None {
		v, err := newVolume(ctx, filepath.Join(dir, "cache"), mode, source)
		if err != nil {
			return 0, 0, err
		}
		defer v.Close()
		device, settle = v, func() error { return v.Settle(ctx, nil) }
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "nbd"))
	if err != nil {
		return 0, 0, err
	}
	server, err := nbd.NewServer(nbd.Config{})
	if err != nil {
		return 0, 0, errors.Join(err, listener.Close())
	}
	serving, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { _ = server.Serve(serving, listener, device) })
	defer group.Wait()
	defer stop()
	client, err := nbd.Dial(ctx, "unix", listener.Addr().String(), "")
	if err != nil {
		return 0, 0, err
	}
	defer client.Close()
	began := time.Now()
	n, err := write(ctx, client, began.Add(o.time), depth)
	if err != nil {
		return 0, 0, err
	}
	writes = float64(n) / time.Since(began).Seconds()
	began = time.Now()
	err = settle()
	return writes, time.Since(began).Seconds(), err
}

// write keeps so many writes under way until the end, each at least one.
func write(ctx context.Context, c *nbd.Client, end time.Time, depth int) (int64, error) {
	var n atomic.Int64
	var group sync.WaitGroup
	failed := make([]error, depth)
	for w := range depth {
		group.Go(func() {
			p := make([]byte, writeSize)
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for first := true; first || time.Now().Before(end) && failed[w] == nil; first = false {
				failed[w] = c.Write(ctx, p, random.Int64N(c.Size()/writeSize)*writeSize, false)
				if n.Add(1)%flushEvery == 0 && failed[w] == nil {
					failed[w] = c.Flush(ctx)
				}
			}
		})
	}
	group.Wait()
	return n.Load(), errors.Join(failed...)
}

// slowSource answers everything late.
type slowSource struct {
	fileSource
	latency time.Duration
}

func (s *slowSource) ReadAt(p []byte, offset int64) (int, error) {
	time.Sleep(s.latency)
	return s.fileSource.ReadAt(p, offset)
}

func (s *slowSource) WriteAt(p []byte, offset int64) (int, error) {
	time.Sleep(s.latency)
	return s.fileSource.WriteAt(p, offset)
}

func (s *slowSource) Discard(offset, length int64) error {
	time.Sleep(s.latency)
	return s.fileSource.Discard(offset, length)
}

func (s *slowSource) Sync() error {
	time.Sleep(s.latency)
	return s.fileSource.Sync()
}

// direct is mode NONE: the source itself.
type direct struct{ *slowSource }

func (d *direct) ReadOnly() bool { return false }

func (d *direct) ReadAt(_ context.Context, p []byte, offset int64) error {
	_, err := d.slowSource.ReadAt(p, offset)
	return err
}

func (d *direct) WriteAt(_ context.Context, p []byte, offset int64, fua bool) error {
	_, err := d.slowSource.WriteAt(p, offset)
	if err == nil && fua {
		err = d.Sync()
	}
	return err
}

func (d *direct) Flush(context.Context) error { return d.Sync() }

func (d *direct) Zero(_ context.Context, offset, length int64, _ export.ZeroFlags) error {
	return d.Discard(offset, length)
}

func (d *direct) Prefetch(context.Context, int64, int64) error { return nil }

func (d *direct) Extents(_ context.Context, offset, length int64, yield func(export.Extent) bool) error {
	yield(export.Extent{Offset: offset, Length: length})
	return nil
}

func (m modes) print() {
	fmt.Printf("random writes of 4 KiB with a flush every %d over a source that takes %.1f ms for everything\n\n", flushEvery, m.Latency*1e3)
	fmt.Printf("%-6s %6s %14s %16s\n", "MODE", "DEPTH", "WRITES/s", "DRAINED AFTER s")
	for _, r := range m.Results {
		drains := slices.Sorted(slices.Values(r.Drain))
		fmt.Printf("%-6s %6d %14.0f %16.2f\n", r.Mode, r.Depth, r.Median, drains[len(drains)/2])
	}
}
