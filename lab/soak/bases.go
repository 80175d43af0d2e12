package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
)

// golden is an immutable image.
type golden struct {
	number   int
	image    disk.Image
	bytes    []byte
	capacity int64 // of its base

	use sync.RWMutex // held for reading by who uses the base, for writing by who drops it
}

func (s *soak) baseDir(g *golden) string {
	return s.path("base", strings.TrimPrefix(g.image.Digest, "blake3:"))
}

func (s *soak) spec(g *golden) *blockd.BaseSpec {
	return &blockd.BaseSpec{Image: g.image, Dir: s.baseDir(g), Capacity: g.capacity, GID: os.Getegid()}
}

// export of name; most are sockets.
func (s *soak) export(r *rand.Rand, name string) blockd.Export {
	e := blockd.Export{Name: name, Kind: blockd.NBD, Path: s.path("machine", name), UID: os.Geteuid(), GID: os.Getegid()}
	if s.files {
		switch n := r.IntN(20); {
		case n < 4:
			e.Kind = blockd.FUSE
		case n < 5:
			e.Kind = blockd.Loop
		}
	}
	return e
}

// lane is one machine after the other that has a clone of some image.
func (s *soak) lane(number int) {
	r := s.random(100 + uint64(number))
	for n := 0; !s.ended(); n++ {
		g := s.images[r.IntN(len(s.images))]
		if err := s.clone(r, g, fmt.Sprintf("b%d.%d", number, n)); err != nil {
			s.fail(err)
			return
		}
	}
}

// clone exports a base, has it read, and takes the export away.
func (s *soak) clone(r *rand.Rand, g *golden, name string) error {
	g.use.RLock()
	defer g.use.RUnlock()
	if err := os.MkdirAll(s.baseDir(g), 0o755); err != nil {
		return err
	}
	e := s.export(r, name)
	if e.Kind == blockd.Loop && len(g.bytes)%512 != 0 { // a block device ends with a whole sector
		e.Kind = blockd.FUSE
	}
	e.Base = s.spec(g)
	e.Record = r.IntN(4) == 0
	what := fmt.Sprintf("base of %s, capacity %d, export %s by %s", g.image.Name, g.capacity, e.Name, e.Kind)
	if err := s.call(what, func(ctx context.Context) error { return s.client.Export(ctx, e) }); err != nil {
		return err
	}
	end := time.Now().Add(time.Duration(500+r.IntN(4000)) * time.Millisecond)
	var readers sync.WaitGroup
	for range 1 + r.IntN(3) {
		mine := rand.New(rand.NewPCG(r.Uint64(), 1))
		readers.Go(func() {
			if err := s.readUntil(mine, e, g, end); err != nil {
				s.fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	if r.IntN(2) == 0 {
		if err := s.preload(r, g, end); err != nil {
			s.fail(fmt.Errorf("%s: preload: %w", what, err))
		}
	}
	readers.Wait()
	s.counts.sessions.Add(1)
	return s.unexport(e, what)
}

func (s *soak) unexport(e blockd.Export, what string) error {
	if err := s.call(what+": unexport", func(ctx context.Context) error { return s.client.Unexport(ctx, e.Name) }); err != nil {
		return err
	}
	if _, err := os.Lstat(e.Path); err == nil {
		return fmt.Errorf("%s: %s is left", what, e.Path)
	}
	return nil
}

// preload brings some or all of a base, often only as far as end.
func (s *soak) preload(r *rand.Rand, g *golden, end time.Time) error {
	p := blockd.Preload{Digest: g.image.Digest}
	switch r.IntN(4) {
	case 0:
		p.Profile, p.Bytes = true, 1<<20
	case 1:
		p.Bytes = r.Int64N(int64(len(g.bytes)) + 1)
	default:
		p.All = true
	}
	if r.IntN(2) == 0 {
		p.Rate = 1<<20 + r.Int64N(16<<20)
	}
	p.Background = r.IntN(2) == 0
	ctx, cancel := context.WithDeadline(s.ctx, end)
	defer cancel()
	err := s.client.Preload(ctx, p, nil)
	if ctx.Err() != nil || fault.Is(err, fault.Unavailable) {
		return nil
	}
	return err
}

// readUntil reads pieces here and there, and rows of pieces, and compares.
func (s *soak) readUntil(r *rand.Rand, e blockd.Export, g *golden, end time.Time) error {
	c, err := open(s.ctx, e)
	if err != nil {
		return err
	}
	defer c.Close()
	most := min(len(g.bytes), 512<<10)
	buffer := make([]byte, most)
	for !s.ended() && time.Now().Before(end) {
		length := 1 + r.IntN(most)
		if r.IntN(3) > 0 {
			length = min(most, 4096<<r.IntN(5))
		}
		at := r.IntN(len(g.bytes) - length + 1)
		row := 1
		if r.IntN(8) == 0 {
			row = 16
		}
		for ; row > 0 && at+length <= len(g.bytes); row-- {
			if err := c.Read(s.ctx, buffer[:length], int64(at)); err != nil {
				return fmt.Errorf("read of %d bytes at %d: %w", length, at, err)
			}
			if err := differ(buffer[:length], g.bytes[at:at+length], int64(at)); err != nil {
				return fmt.Errorf("read: %w", err)
			}
			s.counts.read.Add(int64(length))
			s.counts.operations.Add(1)
			at += length
		}
	}
	return nil
}

// dropBases takes away what nobody uses, now and then, so that it is fetched again.
func (s *soak) dropBases() {
	r := s.random(2)
	for s.sleep(time.Second); !s.ended(); s.sleep(time.Duration(200+r.IntN(1000)) * time.Millisecond) {
		g := s.images[r.IntN(len(s.images))]
		if !g.use.TryLock() {
			continue
		}
		if err := s.drop(g); err != nil {
			s.fail(err)
		}
		g.use.Unlock()
	}
}

func (s *soak) drop(g *golden) error {
	err := s.call("drop base of "+g.image.Name, func(ctx context.Context) error {
		err := s.client.DropBase(ctx, g.image.Digest)
		if fault.Is(err, fault.Busy) { // a preload whose caller has left
			return fault.As(fault.Unavailable, err)
		}
		return err
	})
	if err == nil {
		s.counts.dropped.Add(1)
		err = os.RemoveAll(s.baseDir(g))
	}
	return err
}

// bounded says whether a base keeps to its capacity; nobody uses it.
func (s *soak) bounded(g *golden) error {
	if g.capacity == 0 {
		return nil
	}
	return filepath.WalkDir(s.baseDir(g), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "data" {
			return err
		}
		taken, err := allocated(path)
		if err == nil && taken > g.capacity+chunk {
			err = fmt.Errorf("%s, data of base %s: takes up %d bytes, capacity is %d", path, g.image.Name, taken, g.capacity)
		}
		return err
	})
}
