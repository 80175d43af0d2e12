package base

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
	"hayloft/disk/localstore"
	"hayloft/image"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const chunk = 4096

// patience ends what would hang, and never what is only slow.
const patience = 2 * time.Minute

// mapFile is what the storage calls the map of a cache that is new: as it was created.
const mapFile = localstore.PresentFile + ".part"

// content is what an image holds: chunks by kind, 'z' zeros, 'd' data of their own, other letters the same data for
// the same letter; tail bytes are cut off the last.
func content(kinds string, tail int) []byte {
	var all []byte
	for i, k := range kinds {
		c := make([]byte, chunk)
		switch k {
		case 'z':
		case 'd':
			rand.NewChaCha8([32]byte{1, byte(i), byte(i >> 8)}).Read(c)
		default:
			rand.NewChaCha8([32]byte{2, byte(k)}).Read(c)
		}
		all = append(all, c...)
	}
	return all[:len(all)-tail]
}

// indexOf makes an index with chunks of 4 KiB, which Scan does not.
func indexOf(t testing.TB, data []byte) *image.Index {
	t.Helper()
	x, err := makeIndex(data)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func makeIndex(data []byte) (*image.Index, error) {
	x, err := image.NewIndex(int64(len(data)), chunk)
	if err != nil {
		return nil, err
	}
	for i := range x.Chunks() {
		offset, length := x.Range(i)
		sum := blake3.Sum256(data[offset:][:length])
		copy(x.Chunk(i), sum[:])
	}
	return image.UnmarshalIndex(x.Marshal())
}

// repository is an image's source as tests want it: counted, wrong, away, slow.
type repository struct {
	data []byte

	mu     sync.Mutex
	bytes  int64
	reads  []int64 // offsets
	opened int
	open   int
	change func(p []byte, offset int64) (n int, err error) // after p is filled; nil: right
	wait   func(ctx context.Context, offset int64)
}

type opened struct {
	*repository
	ctx context.Context
}

func (r *repository) Open(ctx context.Context) (io.ReaderAt, io.Closer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened++
	r.open++
	o := &opened{r, ctx}
	return o, o, nil
}

func (o *opened) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open--
	return nil
}

func (o *opened) ReadAt(p []byte, offset int64) (int, error) {
	o.mu.Lock()
	wait, change := o.wait, o.change
	o.reads = append(o.reads, offset)
	o.mu.Unlock()
	if wait != nil {
		wait(o.ctx, offset)
	}
	if err := o.ctx.Err(); err != nil {
		return 0, fault.As(fault.Unavailable, err)
	}
	n, err := bytes.NewReader(o.data).ReadAt(p, offset)
	if change != nil {
		if n, err = change(p, offset); n == 0 && err == nil {
			n = len(p)
		}
	}
	o.mu.Lock()
	o.bytes += int64(n)
	o.mu.Unlock()
	return n, err
}

func (r *repository) fetched() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// offsets of the reads so far.
func (r *repository) offsets() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reads)
}

func (r *repository) set(change func(p []byte, offset int64) (int, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change = change
}

// bench is one image, its repository and a host's disk.
type bench struct {
	t     testing.TB
	data  []byte
	index *image.Index
	repo  *repository
	disk  *faulty.Disk
}

func newBench(t testing.TB, data []byte) *bench {
	return &bench{t: t, data: data, index: indexOf(t, data), repo: &repository{data: data}, disk: faulty.New(1)}
}

// open opens the cache; change may be nil.
func (b *bench) open(change func(*cache.BaseConfig)) *base {
	b.t.Helper()
	c := cache.BaseConfig{Name: "debian", Dir: b.disk.Dir(), Index: b.index, Open: b.repo.Open, Patience: patience}
	if change != nil {
		change(&c)
	}
	opened, err := Open(context.Background(), c)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { opened.Close() })
	return opened.(*base)
}

func (b *bench) check(d export.Device, offset int64, length int) {
	b.t.Helper()
	p := make([]byte, length)
	if err := d.ReadAt(context.Background(), p, offset); err != nil {
		b.t.Fatalf("read %d at %d: %v", length, offset, err)
	}
	if !bytes.Equal(p, b.data[offset:offset+int64(length)]) {
		b.t.Fatalf("read %d at %d: wrong bytes", length, offset)
	}
}

// try is a hit, or not.
func (b *bench) try(d export.Device, offset int64, length int) bool {
	b.t.Helper()
	p := make([]byte, length)
	done, err := d.(export.Quick).TryReadAt(p, offset)
	if err != nil {
		b.t.Fatal(err)
	}
	if done && !bytes.Equal(p, b.data[offset:offset+int64(length)]) {
		b.t.Fatalf("hit of %d at %d: wrong bytes", length, offset)
	}
	return done
}

// hits is try for what must be here: a sync that is under way may keep single tries from it.
func (b *bench) hits(d export.Device, offset int64, length int) bool {
	b.t.Helper()
	for began := time.Now(); !b.try(d, offset, length); time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			return false
		}
	}
	return true
}

var _ storage.Dir = (*faulty.Disk)(nil)
