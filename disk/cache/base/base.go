// Package base is the shared copy of an image on a host: fetched chunk by chunk as machines read it, verified against
// the chunk index before anybody sees it, kept in one sparse file, and found again after a restart or a crash.
//
// Order on fill: data is written, data is synced, the bit in the presence map is written and synced. On eviction the
// reverse. So whatever a crash leaves, each bit that is set stands for a chunk that is right.
package base

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/image"
)

// Donating is what a Base of this package is besides.
type Donating interface {
	// Donor is the base as one whose chunks others may take, for as long as its directory is there.
	Donor() cache.Donor
}

// Degrading is what a Base of this package is besides.
type Degrading interface {
	// Degraded is why the local file system could not keep something since Open, nil when it could always. Machines
	// are served all the same, from the repository.
	Degraded() error
}

const (
	defaultPatience = 10 * time.Minute
	maxStall        = 2 * time.Minute // for what takes no less than a read of maxRun
)

type base struct {
	name     string
	log      *slog.Logger
	dir      storage.Dir
	index    *image.Index
	size     int64
	shift    int // log2 of the chunk size
	chunks   int
	total    int64 // bytes of chunks that are not zero
	maxRun   int   // chunks
	capacity int64 // 0: all
	patience time.Duration

	data  storage.File
	fd    uintptr // of data
	hasFD bool

	here    bitmap      // chunks that data has, and those of zeros
	whole   atomic.Bool // all of them, for ever
	bytes   atomic.Int64
	shard   [shards]counter
	readers atomic.Uint64
	fetched, donated,
	evicted atomic.Int64
	degraded atomic.Pointer[degradation]

	// Eviction. kept is the part of the capacity that is taken. gen grows after chunks were taken out of here and
	// before they are punched; punching keeps a punch and reads apart.
	kept     atomic.Int64
	stored   bitmap // here, without those of zeros
	used     bitmap // again after they came, since the hand last passed
	hand     int    // protected by mu
	gen      atomic.Uint64
	punching sync.RWMutex

	mu      sync.Mutex
	flights map[int]*flight // by chunk
	aheads  int             // read-aheads under way
	closed  bool

	buffers sync.Pool // of maxRun bytes
	gate    *gate
	away    atomic.Pointer[string] // why the repository could not be reached when it was last asked
	source  source
	kinOf   func() kin

	saving       sync.Mutex // one at a time changes what is durable
	presence     *presence  // nil when the base was complete at Open
	pendingMu    sync.Mutex
	pending      []int // chunks that are here, but not durably
	pendingBytes int64
	syncFailures int64         // protected by pendingMu
	fresh        bitmap        // chunks whose data is not durable: a sync that fails may undo them
	syncs        atomic.Uint64 // odd while such a sync is under way, grows with each
	kick         chan struct{}
	completed    func() // nil, or good for one call

	ctx    context.Context // of all work
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// Open opens an image's cache, makes it when it is not there, and begins anew when what is there is not this image's.
// It does not touch the repository. ctx is for Open alone. Completed is also called for one that is complete already;
// it must not close the base. Errors are those of the directory, and fault.Invalid.
func Open(ctx context.Context, c cache.BaseConfig) (cache.Base, error) {
	if c.Index == nil || c.Dir == nil || c.Capacity < 0 {
		return nil, fault.Errorf(fault.Invalid, "image %s: cache: wants index, directory and a capacity that is not negative", c.Name)
	}
	b := &base{name: c.Name, log: c.Log, dir: c.Dir, index: c.Index, size: c.Index.Length(), chunks: c.Index.Chunks(),
		shift: bits.TrailingZeros(uint(c.Index.ChunkSize())), maxRun: max(1, maxRun/c.Index.ChunkSize()),
		capacity: c.Capacity, patience: c.Patience, completed: c.Completed,
		flights: map[int]*flight{}, gate: newGate(), kick: make(chan struct{}, 1)}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.patience <= 0 {
		b.patience = defaultPatience
	}
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	b.source = source{ctx: b.ctx, open: c.Open, stall: min(b.patience, maxStall)}
	b.kinOf = sync.OnceValue(func() kin { return newKin(b.ctx, b.index, c.Donors) })
	b.here = newBitmap(b.chunks)
	if err := b.openFiles(ctx); err != nil {
		b.cancel()
		return nil, fmt.Errorf("image %s: cache: %w", b.name, err)
	}
	if b.completed != nil {
		b.completed = sync.OnceFunc(b.completed)
	}
	if d, ok := b.data.(storage.Descriptor); ok {
		b.fd, b.hasFD = d.Fd(), true
	}
	for b.kept.Load() > b.capacity && b.capacity > 0 { // it was larger before
		if err := b.evict(0); err != nil {
			b.degrade("evict", err)
			break
		}
	}
	b.work.Add(1)
	go b.flusher()
	return b, nil
}

func (b *base) kin() kin { return b.kinOf() }

// Status implements cache.Base.
func (b *base) Status() cache.BaseStatus {
	s := cache.BaseStatus{Present: b.bytes.Load(), Total: b.total, Complete: b.whole.Load(), Fetched: b.fetched.Load(),
		Donated: b.donated.Load(), Evicted: b.evicted.Load()}
	for i := range b.shard {
		s.Hits += b.shard[i].hits.Load()
		s.Misses += b.shard[i].misses.Load()
	}
	if why := b.away.Load(); why != nil {
		s.Error = *why
	}
	return s
}

// Degraded implements Degrading.
func (b *base) Degraded() error {
	if d := b.degraded.Load(); d != nil {
		return fmt.Errorf("image %s: cache: %s: %w", b.name, d.what, d.err)
	}
	return nil
}

// Donor implements Donating.
func (b *base) Donor() cache.Donor {
	return cache.Donor{
		Index: b.index,
		Open:  func() (storage.File, error) { return b.dir.Open(dataFile) },
		Has:   func(chunk int) bool { return chunk >= 0 && chunk < b.chunks && b.here.has(chunk) },
	}
}

// Close implements cache.Base.
func (b *base) Close() error {
	b.mu.Lock()
	already := b.closed
	b.closed = true
	b.mu.Unlock()
	if already {
		return nil
	}
	b.cancel()
	b.work.Wait()
	errs := []error{b.Sync()}
	b.source.closeIdle(0)
	if b.presence != nil && !b.whole.Load() {
		errs = append(errs, b.presence.file.Close())
	}
	if b.whole.Load() && b.completed != nil { // unless the flusher has
		b.completed()
	}
	return errors.Join(append(errs, b.data.Close())...)
}
