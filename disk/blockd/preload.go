package blockd

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/image"
)

// Preload implements Service. What it asks for comes in the order profile, first bytes, all.
func (d *Daemon) Preload(ctx context.Context, p Preload, report func(done, total int64)) error {
	if p.Bytes < 0 || p.Rate < 0 {
		return fault.Errorf(fault.Invalid, "preload of base %s: %d bytes at %d bytes a second", p.Digest, p.Bytes, p.Rate)
	}
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	b, err := d.known(p.Digest)
	if err != nil {
		return err
	}
	if p.Background {
		return b.errorf(b.addBackground(p))
	}
	return b.preload(ctx, p, report)
}

func (b *based) preload(ctx context.Context, p Preload, report func(done, total int64)) error {
	base, index, err := b.acquire(ctx)
	if err != nil {
		return err
	}
	chunks, err := b.chunks(ctx, p, index)
	if err == nil && len(chunks) > 0 {
		err = base.Preload(ctx, chunks, limit(p.Rate), report)
	}
	return errors.Join(b.errorf(err), b.release())
}

func (b *based) chunks(ctx context.Context, p Preload, index *image.Index) ([]int, error) {
	var list []int
	if p.Profile {
		profile, err := b.profile(ctx, index)
		if err != nil && !p.All { // a hint, without which all comes too
			return nil, err
		}
		list = profile
	}
	n := int((min(p.Bytes, index.Length()) + int64(index.ChunkSize()) - 1) / int64(index.ChunkSize()))
	if p.All {
		n = index.Chunks()
	}
	listed := make([]bool, index.Chunks())
	for _, c := range list {
		listed[c] = true
	}
	for c := range n {
		if !listed[c] && !index.IsZero(c) {
			list = append(list, c)
		}
	}
	return list, nil
}

// limiter bounds bytes a second.
type limiter struct{ *rate.Limiter }

func limit(perSecond int64) cache.Limit {
	if perSecond == 0 {
		return nil
	}
	return limiter{rate.NewLimiter(rate.Limit(perSecond), int(min(max(perSecond/10, 64<<10), 16<<20)))}
}

func (l limiter) Wait(ctx context.Context, n int) error {
	for n > 0 {
		part := min(n, l.Burst())
		if err := l.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// background is a preload that nobody waits for.
type background struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// addBackground remembers a preload durably and begins it.
func (b *based) addBackground(p Preload) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.record.Background, p) {
		r := b.record
		r.Background = append(slices.Clone(r.Background), p)
		if err := b.keep(r); err != nil {
			return err
		}
	}
	b.beginBackground()
	return nil
}

// keep remembers another record; with mu held.
func (b *based) keep(r baseRecord) error {
	hex, err := image.ParseDigest(r.Spec.Image.Digest)
	if err != nil {
		return err
	}
	if err := b.daemon.basesKept.put(hex, r); err != nil {
		return err
	}
	b.record = r
	return nil
}

// beginBackground starts what is remembered and does not run; with mu held.
func (b *based) beginBackground() {
	for _, p := range b.record.Background {
		if b.background[p] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(b.daemon.ctx)
		g := &background{cancel, make(chan struct{})}
		b.background[p] = g
		if !b.daemon.spawn(func(context.Context) { b.runBackground(ctx, g, p) }) {
			cancel()
			close(g.done)
			delete(b.background, p)
		}
	}
}

// stopBackground ends and forgets all of them.
func (b *based) stopBackground() {
	b.mu.Lock()
	var running []*background
	for _, g := range b.background {
		g.cancel()
		running = append(running, g)
	}
	b.mu.Unlock()
	for _, g := range running {
		<-g.done
	}
}

const (
	retryFirst = time.Second
	retryMost  = 30 * time.Second
)

func (b *based) runBackground(ctx context.Context, g *background, p Preload) {
	log := b.daemon.config.Log.With("digest", p.Digest)
	defer close(g.done)
	defer g.cancel()
	pause := retryFirst
	for {
		err := b.preload(ctx, p, nil)
		if err == nil || ctx.Err() != nil {
			break
		}
		log.Warn("background preload", "error", err)
		if c := fault.ClassOf(err); c != fault.Unavailable && c != fault.Internal && c != fault.Busy {
			break
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, retryMost)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.background, p)
	if b.daemon.ctx.Err() != nil {
		return // the next daemon goes on with it
	}
	r := b.record
	r.Background = slices.DeleteFunc(slices.Clone(r.Background), func(q Preload) bool { return q == p })
	if err := b.keep(r); err != nil {
		log.Error("background preload cannot be forgotten", "error", err)
	}
}

// exported counts an export more or less. The first begins what was to be brought in the background, the last ends it.
func (b *based) exported(n int) {
	b.mu.Lock()
	b.exports += n
	if n > 0 {
		b.beginBackground()
	}
	unused := b.exports == 0
	b.mu.Unlock()
	if unused && b.daemon.ctx.Err() == nil {
		b.stopBackground()
	}
}
