package proof

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/zeebo/blake3"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/export"
	"hayloft/disk/localstore"
)

// naiveBase is a base, as simple as can be right, and with a defect wrong in one way.
type naiveBase struct {
	cache.BaseConfig
	defect        string
	turn          chan struct{}
	data, present storage.File
	here          []bool
	unsaved       []int // chunks that are here, but not durably
	order         []int // of arrival, for eviction
	fetched       int64
	complete      bool
}

func openNaiveBase(defect string) func(context.Context, cache.BaseConfig) (cache.Base, error) {
	return func(_ context.Context, c cache.BaseConfig) (cache.Base, error) {
		b := &naiveBase{BaseConfig: c, defect: defect, turn: make(chan struct{}, 1), here: make([]bool, c.Index.Chunks())}
		names, err := c.Dir.Names()
		if err != nil {
			return nil, err
		}
		if b.data, err = openOr(c.Dir, "data"); err != nil {
			return nil, err
		}
		if err := b.data.Truncate(c.Index.Length()); err != nil {
			return nil, err
		}
		if b.present, err = openOr(c.Dir, "present"); err != nil {
			return nil, err
		}
		if err := c.Dir.Sync(); err != nil {
			return nil, err
		}
		for _, name := range names {
			b.complete = b.complete || name == localstore.CompleteFile
		}
		bits := make([]byte, len(b.here))
		if _, err := b.present.ReadAt(bits, 0); err != nil && err != io.EOF {
			return nil, err
		}
		for i := range b.here {
			b.here[i] = b.complete || bits[i] == 1
			if b.here[i] && !c.Index.IsZero(i) {
				b.order = append(b.order, i)
			}
		}
		return b, nil
	}
}

func openOr(d storage.Dir, name string) (storage.File, error) {
	f, err := d.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = d.Create(name)
	}
	return f, err
}

func (b *naiveBase) lock() func() {
	b.turn <- struct{}{}
	return func() { <-b.turn }
}

// chunk gives chunk i, from here or fetched.
func (b *naiveBase) chunk(ctx context.Context, i int) ([]byte, error) {
	offset, length := b.Index.Range(i)
	p := make([]byte, length)
	if b.Index.IsZero(i) {
		return p, nil
	}
	if b.here[i] && b.defect != "fetches again" {
		_, err := b.data.ReadAt(p, offset)
		return p, err
	}
	if !b.donated(i, p) {
		source, closer, err := b.Open(ctx)
		if err != nil {
			return nil, err
		}
		defer closer.Close()
		n, err := source.ReadAt(p, offset)
		if n < length && b.defect != "takes what is short for whole" {
			return nil, fault.Errorf(fault.Unavailable, "chunk %d: %v", i, err)
		}
		b.fetched += int64(length)
		if b.defect != "does not verify" {
			if err := b.Index.VerifyChunk(i, p); err != nil && (b.defect != "takes what is short for whole" || n == length) {
				return nil, err
			}
		}
	}
	return p, b.keep(i, p)
}

func (b *naiveBase) donated(i int, p []byte) bool {
	for _, d := range b.Donors {
		for j := range d.Index.Chunks() {
			offset, length := d.Index.Range(j)
			if length != len(p) || string(d.Index.Chunk(j)) != string(b.Index.Chunk(i)) || !d.Has(j) {
				continue
			}
			f, err := d.Open()
			if err != nil {
				return false
			}
			if _, err := f.ReadAt(p, offset); err != nil {
				return false
			}
			return b.defect == "believes donors" || blake3.Sum256(p) == [32]byte(b.Index.Chunk(i))
		}
	}
	return false
}

func (b *naiveBase) keep(i int, p []byte) error {
	offset, length := b.Index.Range(i)
	for b.Capacity > 0 && b.bytes()+int64(length) > b.Capacity && len(b.order) > 0 && b.defect != "keeps more than its capacity" {
		if err := b.evict(b.order[0]); err != nil {
			return err
		}
		b.order = b.order[1:]
	}
	if b.Capacity > 0 && b.Capacity < int64(length) {
		return nil
	}
	if _, err := b.data.WriteAt(p, offset); err != nil {
		return err
	}
	b.here[i] = true
	b.order = append(b.order, i)
	if b.defect == "sets bits before data is durable" {
		if _, err := b.present.WriteAt([]byte{1}, int64(i)); err != nil {
			return err
		}
		return b.present.Sync()
	}
	b.unsaved = append(b.unsaved, i)
	if len(b.unsaved) < 3 {
		return nil
	}
	return b.save()
}

func (b *naiveBase) evict(i int) error {
	offset, length := b.Index.Range(i)
	b.here[i] = false
	if _, err := b.present.WriteAt([]byte{0}, int64(i)); err != nil {
		return err
	}
	if b.defect != "punches before the bit is durably gone" {
		if err := b.present.Sync(); err != nil {
			return err
		}
	}
	return b.data.Punch(offset, int64(length))
}

func (b *naiveBase) save() error {
	early := b.defect == "complete before it is durable"
	if early {
		if err := b.markComplete(); err != nil {
			return err
		}
	}
	if err := b.data.Sync(); err != nil {
		return err
	}
	for _, i := range b.unsaved {
		if b.here[i] {
			if _, err := b.present.WriteAt([]byte{1}, int64(i)); err != nil {
				return err
			}
		}
	}
	b.unsaved = nil
	if err := b.present.Sync(); err != nil || early {
		return err
	}
	return b.markComplete()
}

func (b *naiveBase) markComplete() error {
	if b.complete || b.bytes() != b.Index.DataBytes() {
		return nil
	}
	f, err := b.Dir.Create(localstore.CompleteFile)
	if err != nil {
		return err
	}
	if b.defect != "completed before the mark is durable" {
		if err := errors.Join(f.Sync(), b.Dir.Sync()); err != nil {
			return err
		}
	}
	b.complete = true
	if b.Completed != nil {
		b.Completed()
	}
	return nil
}

func (b *naiveBase) bytes() (n int64) {
	for i, here := range b.here {
		if here && !b.Index.IsZero(i) {
			_, length := b.Index.Range(i)
			n += int64(length)
		}
	}
	return n
}

func (b *naiveBase) Reader(touched func(int)) export.Device {
	return &naiveReader{base: b, touch: touched, met: map[int]bool{}}
}

func (b *naiveBase) Preload(ctx context.Context, chunks []int, _ cache.Limit, _ func(done, total int64)) error {
	defer b.lock()()
	for _, i := range chunks {
		if _, err := b.chunk(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (b *naiveBase) Status() cache.BaseStatus {
	defer b.lock()()
	return cache.BaseStatus{Present: b.bytes(), Total: b.Index.DataBytes(), Complete: b.complete, Fetched: b.fetched}
}

func (b *naiveBase) Sync() error {
	defer b.lock()()
	if b.defect == "does not sync" {
		return nil
	}
	return b.save()
}

func (b *naiveBase) Close() error {
	defer b.lock()()
	return b.save()
}

type naiveReader struct {
	base  *naiveBase
	touch func(int)
	met   map[int]bool
}

func (r *naiveReader) Size() int64                                  { return r.base.Index.Length() }
func (r *naiveReader) ReadOnly() bool                               { return true }
func (r *naiveReader) Flush(context.Context) error                  { return nil }
func (r *naiveReader) Prefetch(context.Context, int64, int64) error { return nil }
func (r *naiveReader) WriteAt(context.Context, []byte, int64, bool) error {
	return fault.Errorf(fault.Permission, "read-only")
}
func (r *naiveReader) Zero(context.Context, int64, int64, export.ZeroFlags) error {
	return fault.Errorf(fault.Permission, "read-only")
}
func (r *naiveReader) Extents(_ context.Context, offset, length int64, yield func(export.Extent) bool) error {
	yield(export.Extent{Offset: offset, Length: length, Zero: r.base.defect == "calls all zeros"})
	return nil
}

func (r *naiveReader) ReadAt(ctx context.Context, p []byte, offset int64) error {
	defer r.base.lock()()
	for size := int64(r.base.Index.ChunkSize()); len(p) > 0; {
		i := int(offset / size)
		if !r.met[i] || r.base.defect == "meets chunks again" {
			r.met[i] = true
			r.touch(i)
		}
		content, err := r.base.chunk(ctx, i)
		if err != nil {
			return err
		}
		n := copy(p, content[offset%size:])
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}
