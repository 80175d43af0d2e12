package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/cache"
	"hayloft/disk/repository"
)

// volume is a persistent image and what it should hold. Only the worker whose range it is writes to model.
type volume struct {
	soak   *soak
	number int
	random *rand.Rand
	image  disk.Image
	stored int    // bytes of the image in the repository at first
	model  []byte // of the disk, which may be longer
}

func newVolume(s *soak, number int, r *rand.Rand) *volume {
	v := &volume{soak: s, number: number, random: s.random(200 + uint64(number))}
	v.stored = (4+r.IntN(10))<<20 + 512*r.IntN(3)
	v.model = content(r, 100+number, v.stored)
	if number%2 == 1 {
		v.model = append(v.model, make([]byte, 1<<20+4096+512*r.IntN(7))...)
	}
	return v
}

var modes = []cache.Mode{cache.Around, cache.Through, cache.Back, cache.Back, cache.Offline}

// lane is one run of the machine after the other, each in some mode.
func (v *volume) lane() {
	for n := 0; !v.soak.ended(); n++ {
		if err := v.session(fmt.Sprintf("v%d.%d", v.number, n), modes[v.random.IntN(len(modes))]); err != nil {
			v.soak.fail(err)
			return
		}
	}
}

func (v *volume) dir() string { return v.soak.path("machine", fmt.Sprintf("v%d", v.number)) }

func (v *volume) owner() repository.Owner {
	return repository.Owner{Host: v.soak.host, Machine: v.number}
}

// export is a run of the machine. One name a machine, as it is in the product.
func (v *volume) export(mode cache.Mode) blockd.Export {
	e := v.soak.export(v.random, fmt.Sprintf("v%d.0", v.number))
	size := int64(len(v.model))
	e.Volume = &blockd.VolumeSpec{Image: v.image, Dir: v.dir(), Machine: v.number, Host: v.soak.host, Size: size, Mode: mode}
	if mode != cache.Offline && v.random.IntN(2) == 0 {
		e.Volume.Capacity = size / int64(2+v.random.IntN(4))
	}
	if v.random.IntN(3) == 0 {
		e.Volume.Load = v.random.Int64N(size)
	}
	return e
}

// session exports the volume, has it written and read, and ends in one of several ways.
func (v *volume) session(name string, mode cache.Mode) error {
	s, r := v.soak, v.random
	e := v.export(mode)
	what := fmt.Sprintf("%s, session %s, mode %s by %s, size %d, capacity %d", v.image.Name, name, mode, e.Kind, e.Volume.Size, e.Volume.Capacity)
	if err := os.MkdirAll(v.dir(), 0o700); err != nil {
		return err
	}
	if err := s.call(what+": export", func(ctx context.Context) error { return s.client.Export(ctx, e) }); err != nil {
		return err
	}
	if err := v.work(e, time.Duration(500+r.IntN(5000))*time.Millisecond); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s.counts.sessions.Add(1)
	how := r.IntN(5)
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if mode == cache.Around || mode == cache.Through { // the source has what was acknowledged
		if err := v.sourceSame(false); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if how < 2 {
		return s.unexport(e, what) // what is not drained stays, for another mode
	}
	if err := v.settle(e.Name); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if how == 2 {
		return s.unexport(e, what)
	}
	if err := v.discard(e); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if how == 3 {
		return nil
	}
	return s.call(what+": disown", func(ctx context.Context) error { return s.work.Disown(ctx, v.image.Source, v.owner()) })
}

// settle brings everything to the source, and compares.
func (v *volume) settle(name string) error {
	s := v.soak
	if err := s.call("settle", func(ctx context.Context) error { return s.client.Settle(ctx, name, nil) }); err != nil {
		return err
	}
	s.counts.settled.Add(1)
	return v.sourceSame(true)
}

// sourceSame compares the image in the repository with the model.
func (v *volume) sourceSame(settled bool) error {
	s := v.soak
	s.here.RLock()
	defer s.here.RUnlock()
	if settled {
		if m, err := s.work.Marked(s.ctx, v.image.Source); err != nil || m.Undrained || m.Owner != v.owner() {
			return fmt.Errorf("mark of the image after settling: %+v, %w", m, err)
		}
	}
	f, err := os.Open(s.path("repository", v.image.Source))
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if len(b) > len(v.model) || len(b) < v.stored {
		return fmt.Errorf("in the repository: %d bytes, was made with %d, the disk has %d", len(b), v.stored, len(v.model))
	}
	b = append(b, make([]byte, len(v.model)-len(b))...)
	if err := differ(b, v.model, 0); err != nil {
		return fmt.Errorf("in the repository (settled %v): %w", settled, err)
	}
	s.counts.read.Add(int64(len(b)))
	return nil
}

// discard leaves no files.
func (v *volume) discard(e blockd.Export) error {
	s := v.soak
	if err := s.call("discard", func(ctx context.Context) error { return s.client.Discard(ctx, e.Name) }); err != nil {
		return err
	}
	if _, err := os.Lstat(e.Path); err == nil {
		return fmt.Errorf("%s is left", e.Path)
	}
	left, err := os.ReadDir(v.dir())
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left after discarding: %v", left)
	}
	return nil
}

// work has several workers write and read for a while, while somebody settles now and then. In the end all of the
// disk is compared.
func (v *volume) work(e blockd.Export, d time.Duration) error {
	s, r := v.soak, v.random
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	end := time.Now().Add(d)
	stripe := []int{3001, 20_000, 40_001, 4 * chunk, 300_001}[r.IntN(5)]
	workers := 1 + r.IntN(6)
	var group sync.WaitGroup
	first, err := open(ctx, e)
	if err != nil {
		return err
	}
	defer first.Close()
	for i := range workers {
		w := &worker{volume: v, mode: e.Volume.Mode, random: rand.New(rand.NewPCG(r.Uint64(), 1)), face: first, number: i, of: workers, stripe: stripe}
		own := r.IntN(2) == 0
		group.Go(func() {
			if err := w.run(ctx, e, own, end); err != nil {
				cancel(fmt.Errorf("worker %d of %d, stripes of %d: %w", w.number, w.of, w.stripe, err))
			}
		})
	}
	if r.IntN(3) == 0 {
		mine := rand.New(rand.NewPCG(r.Uint64(), 2))
		group.Go(func() {
			for s.sleep(time.Duration(mine.IntN(1500)) * time.Millisecond); time.Now().Before(end) && !s.ended() && ctx.Err() == nil; s.sleep(time.Duration(mine.IntN(3000)) * time.Millisecond) {
				err := s.call("settle meanwhile", func(ctx context.Context) error { return s.client.Settle(ctx, e.Name, nil) })
				if err != nil {
					cancel(err)
				}
			}
		})
	}
	group.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if r.IntN(2) == 0 || e.Kind != blockd.NBD { // what the kernel keeps in memory was not given to us yet
		if err := v.durably(ctx, e.Volume.Mode, func() error { return first.Flush(ctx) }); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
	}
	return v.same(ctx, first)
}

// same reads all of the disk.
func (v *volume) same(ctx context.Context, c face) error {
	const piece = 1 << 20
	p := make([]byte, piece)
	for at := 0; at < len(v.model); at += piece {
		want := v.model[at:min(at+piece, len(v.model))]
		if err := c.Read(ctx, p[:len(want)], int64(at)); err != nil {
			return fmt.Errorf("read of %d bytes at %d: %w", len(want), at, err)
		}
		if err := differ(p[:len(want)], want, int64(at)); err != nil {
			return fmt.Errorf("all of the disk: %w", err)
		}
		v.soak.counts.read.Add(int64(len(want)))
	}
	return nil
}

// last is the end of it: all of the disk as another boot sees it, then as the repository has it, and no files.
func (v *volume) last() error {
	s := v.soak
	mode := modes[v.random.IntN(len(modes))]
	e := v.export(mode)
	e.Kind = blockd.NBD
	what := fmt.Sprintf("%s, last session, mode %s, size %d, capacity %d", v.image.Name, mode, e.Volume.Size, e.Volume.Capacity)
	if err := os.MkdirAll(v.dir(), 0o700); err != nil {
		return err
	}
	err := s.call("export", func(ctx context.Context) error { return s.client.Export(ctx, e) })
	if err == nil {
		err = v.look(e)
	}
	if err == nil {
		err = v.settle(e.Name)
	}
	if err == nil {
		err = v.discard(e)
	}
	if err == nil {
		err = s.work.Disown(s.ctx, v.image.Source, v.owner())
	}
	if err == nil {
		if _, err = s.work.Marked(s.ctx, v.image.Source); fault.Is(err, fault.NotFound) {
			err = nil
		} else {
			err = errors.Join(err, errors.New("somebody owns it still"))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (v *volume) look(e blockd.Export) error {
	c, err := open(v.soak.ctx, e)
	if err != nil {
		return err
	}
	return errors.Join(v.same(v.soak.ctx, c), c.Close())
}
