package blockd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/localstore"
	"hayloft/image"
	"hayloft/internal/waiting"
)

// baseRecord is what is remembered of a base.
type baseRecord struct {
	Spec       BaseSpec  `json:"spec"`
	Background []Preload `json:"background,omitempty"`
}

// based is one base that is known. It is open while somebody uses it.
type based struct {
	daemon *Daemon
	turn   chan struct{} // held by who opens or closes

	mu         sync.Mutex
	record     baseRecord
	base       cache.Base // nil: not open
	index      *image.Index
	users      int              // exports and preloads
	exports    int              // of these
	last       cache.BaseStatus // when it was open last
	seen       bool             // last is something
	gone       bool             // dropped
	background map[Preload]*background
	recorder   *recorder
	publishing map[*background]bool // keepers of what was recorded
}

func newBased(d *Daemon, r baseRecord) *based {
	return &based{daemon: d, turn: make(chan struct{}, 1), record: r, background: map[Preload]*background{}, publishing: map[*background]bool{}}
}

func checkBase(s BaseSpec) (hex string, err error) {
	if hex, err = image.ParseDigest(s.Image.Digest); err != nil {
		return "", err
	}
	if !filepath.IsAbs(s.Dir) {
		return "", fault.Errorf(fault.Invalid, "base %s: directory %q is not absolute", s.Image.Digest, s.Dir)
	}
	if s.Capacity < 0 {
		return "", fault.Errorf(fault.Invalid, "base %s: capacity of %d bytes", s.Image.Digest, s.Capacity)
	}
	return hex, nil
}

// Base implements Service.
func (d *Daemon) Base(ctx context.Context, s BaseSpec) (cache.BaseStatus, error) {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return cache.BaseStatus{}, err
	}
	defer leave()
	b, err := d.know(ctx, s)
	if err != nil {
		return cache.BaseStatus{}, err
	}
	base, _, err := b.acquire(ctx)
	if err != nil {
		return cache.BaseStatus{}, err
	}
	status := base.Status()
	return status, b.release()
}

// know remembers a base, durably.
func (d *Daemon) know(ctx context.Context, s BaseSpec) (*based, error) {
	hex, err := checkBase(s)
	if err != nil {
		return nil, err
	}
	give, err := d.turns.take(ctx, s.Image.Digest)
	if err != nil {
		return nil, err
	}
	defer give()
	d.mu.Lock()
	b := d.bases[s.Image.Digest]
	if b == nil {
		b = newBased(d, baseRecord{})
		d.bases[s.Image.Digest] = b
	}
	d.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if sameJSON(b.record.Spec, s) {
		return b, nil
	}
	if b.users > 0 && b.record.Spec.Dir != s.Dir {
		return nil, fault.Errorf(fault.Exists, "base %s: is open in %s, not in %s", s.Image.Digest, b.record.Spec.Dir, s.Dir)
	}
	r := b.record
	r.Spec = s
	if err := d.basesKept.put(hex, r); err != nil {
		return nil, fmt.Errorf("base %s: %w", s.Image.Digest, err)
	}
	b.record = r
	return b, nil
}

// known finds a base.
func (d *Daemon) known(digest string) (*based, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bases[digest]
	if b == nil {
		return nil, fault.Errorf(fault.NotFound, "base %s: not known", digest)
	}
	return b, nil
}

func (b *based) spec() BaseSpec {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.record.Spec
}

// errorf names the base.
func (b *based) errorf(err error) error {
	if err == nil {
		return nil
	}
	img := b.spec().Image
	return fmt.Errorf("image %d (%s), base %s: %w", img.ID, img.Name, img.Digest, err)
}

// acquire opens the base unless it is open already; release lets go of it.
func (b *based) acquire(ctx context.Context) (cache.Base, *image.Index, error) {
	img := b.spec().Image
	ctx, done := waiting.On(ctx, "the base of image %d (%s)", img.ID, img.Name)
	defer done()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	b.mu.Lock()
	if b.gone {
		b.mu.Unlock()
		return nil, nil, fault.Errorf(fault.NotFound, "base %s: not known any more", b.spec().Image.Digest)
	}
	if b.base != nil {
		defer b.mu.Unlock()
		b.users++
		return b.base, b.index, nil
	}
	b.mu.Unlock()
	base, index, err := b.open(ctx)
	if err != nil {
		return nil, nil, b.errorf(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.base, b.index, b.users = base, index, 1
	return base, index, nil
}

func (b *based) release() error {
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	b.mu.Lock()
	b.users--
	base := b.base
	b.last, b.seen = base.Status(), true
	if b.users > 0 {
		b.mu.Unlock()
		return nil
	}
	b.base, b.index = nil, nil
	b.mu.Unlock()
	return b.errorf(base.Close())
}

func (b *based) open(ctx context.Context) (cache.Base, *image.Index, error) {
	s := b.spec()
	dir, err := storage.OS(s.Dir, storage.Access{Names: []string{localstore.DataFile}, Mode: 0o440, GID: s.GID})
	if err != nil {
		return nil, nil, err
	}
	index, err := b.readIndex(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	log := b.daemon.config.Log.With("image", s.Image.ID, "digest", s.Image.Digest)
	base, err := b.daemon.config.Base(ctx, cache.BaseConfig{
		Name: fmt.Sprintf("image %d (%s)", s.Image.ID, s.Image.Name), Dir: dir, Index: index,
		Open:     func(ctx context.Context) (io.ReaderAt, io.Closer, error) { return b.source(ctx, index) },
		Capacity: s.Capacity, Donors: b.daemon.donors(s.Dir, index), Patience: b.daemon.config.Patience,
		Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	return base, index, nil
}

// source opens the image as the latest spec says where it is.
func (b *based) source(ctx context.Context, index *image.Index) (io.ReaderAt, io.Closer, error) {
	img := b.spec().Image
	repo, err := b.daemon.config.Open(img.Repository)
	if err != nil {
		return nil, nil, err
	}
	src, err := repo.Open(ctx, img.Source)
	if err != nil {
		return nil, nil, err
	}
	if src.Size() != index.Length() {
		err := fault.Errorf(fault.Corrupt, "object %s has %d bytes instead of %d", img.Source, src.Size(), index.Length())
		return nil, nil, errors.Join(err, src.Close())
	}
	return src, src, nil
}

// DropBase implements Service. What is preloaded in the background for nobody is no use. Nothing writes to the base's directory
// any more when it returns.
func (d *Daemon) DropBase(ctx context.Context, digest string) error {
	hex, err := image.ParseDigest(digest)
	if err != nil {
		return err
	}
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	give, err := d.turns.take(ctx, digest)
	if err != nil {
		return err
	}
	defer give()
	b, err := d.known(digest)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := b.busy(); err != nil {
		return err
	}
	b.stopBackground()
	b.stopPublishing()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := b.busy(); err != nil {
		return err
	}
	if err := d.basesKept.remove(hex); err != nil {
		return fmt.Errorf("base %s: %w", digest, err)
	}
	b.mu.Lock()
	b.gone = true
	b.mu.Unlock()
	d.mu.Lock()
	delete(d.bases, digest)
	d.mu.Unlock()
	return nil
}

func (b *based) busy() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.exports > 0 || b.users > len(b.background) {
		return fault.Errorf(fault.Busy, "base %s: in use by %d exports and %d preloads", b.record.Spec.Image.Digest, b.exports, b.users-b.exports)
	}
	return nil
}
