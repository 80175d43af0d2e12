package proof

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/export"
)

// naive is a volume of all modes, as simple as can be right, and with a defect wrong in one way: what the harness is
// proven with. One operation at a time.
type naive struct {
	cache.VolumeConfig
	defect string
	turn   chan struct{} // not a mutex: the bubble's clock has to go on
	file   storage.File  // the cache, the log or the copy
	marked bool
	taken  error // by another owner
	poison error // a sync failed: nobody knows what is durable

	cached map[int64]bool // Around, Through: by block

	records []record // Back: in order, not drained
	tail    int64
	epoch   uint64
	drained uint64
	flushes int
	unsaved [][]byte // for a defect

	loaded, dirty bool // Offline
}

const naiveBlock = 4096

type record struct {
	epoch          uint64
	offset, length int64
	data           []byte // nil: zeros
}

func openNaive(defect string) func(context.Context, cache.VolumeConfig) (cache.Volume, error) {
	return func(_ context.Context, cfg cache.VolumeConfig) (cache.Volume, error) {
		v := &naive{VolumeConfig: cfg, defect: defect, turn: make(chan struct{}, 1), cached: map[int64]bool{}}
		var err error
		if v.file, err = cfg.Dir.Open("file"); errors.Is(err, fs.ErrNotExist) {
			if v.file, err = cfg.Dir.Create("file"); err == nil {
				err = cfg.Dir.Sync()
			}
		}
		if err != nil {
			return nil, err
		}
		switch cfg.Mode {
		case cache.Back:
			err = v.replay()
		case cache.Offline:
			_, unmarked := cfg.Dir.Open("marked")
			v.marked = unmarked == nil
			_, missing := cfg.Dir.Open("loaded")
			v.loaded = missing == nil
			v.dirty = v.loaded && defect != "forgets what is dirty"
			if missing != nil && !errors.Is(missing, fs.ErrNotExist) {
				err = missing
			}
		default:
			if defect == "believes its map after a crash" {
				err = v.readMap()
			}
		}
		return v, err
	}
}

func (v *naive) lock() func() {
	v.turn <- struct{}{}
	return func() { <-v.turn }
}

func (v *naive) Size() int64                                  { return v.VolumeConfig.Size }
func (v *naive) ReadOnly() bool                               { return false }
func (v *naive) Prefetch(context.Context, int64, int64) error { return nil }
func (v *naive) Close() error                                 { return v.file.Close() }
func (v *naive) Flush(ctx context.Context) error              { defer v.lock()(); return v.flush(ctx) }
func (v *naive) direct() bool                                 { return v.Mode == cache.Around || v.Mode == cache.Through }
func (v *naive) mark(ctx context.Context) error {
	if v.marked || v.defect == "sets no mark" {
		return nil
	}
	if v.taken != nil {
		return v.taken
	}
	if err := v.Source.Undrained(ctx, true); err != nil {
		if fault.Is(err, fault.Busy) && v.defect != "goes on when the image is another's" {
			v.taken = err
		}
		return err
	}
	if err := v.replace("marked", nil); err != nil {
		return err
	}
	v.marked = true
	return nil
}

func (v *naive) Extents(_ context.Context, offset, length int64, yield func(export.Extent) bool) error {
	yield(export.Extent{Offset: offset, Length: length, Zero: v.defect == "calls all zeros"})
	return nil
}

func (v *naive) Status() cache.VolumeStatus {
	defer v.lock()()
	s := cache.VolumeStatus{Mode: v.Mode}
	if len(v.records) > 0 || v.Mode == cache.Offline && v.dirty {
		s.Undrained = 1
	}
	return s
}

// fromSource reads zeros beyond the end of the source.
func (v *naive) fromSource(p []byte, offset int64) error {
	clear(p)
	n := min(int64(len(p)), v.Source.Size()-offset)
	if n <= 0 {
		return nil
	}
	if _, err := v.Source.ReadAt(p[:n], offset); err != nil && err != io.EOF {
		return err
	}
	return nil
}

// toSource writes data, or zeros when it is nil.
func (v *naive) toSource(data []byte, offset, length int64) error {
	size := v.Source.Size()
	if data == nil {
		if length = min(length, size-offset); length <= 0 {
			return nil
		}
		return v.Source.Discard(offset, length)
	}
	if offset+length > size {
		if err := v.Source.Truncate(offset + length); err != nil {
			return err
		}
	}
	_, err := v.Source.WriteAt(data, offset)
	return err
}

func (v *naive) ReadAt(_ context.Context, p []byte, offset int64) error {
	defer v.lock()()
	switch v.Mode {
	case cache.Offline:
		_, err := v.file.ReadAt(p, offset)
		return err
	case cache.Back:
		if err := v.fromSource(p, offset); err != nil {
			return err
		}
		for _, r := range v.records {
			from, to := max(offset, r.offset), min(offset+int64(len(p)), r.offset+r.length)
			if from < to && r.data != nil {
				copy(p[from-offset:to-offset], r.data[from-r.offset:])
			} else if from < to {
				clear(p[from-offset : to-offset])
			}
		}
		return nil
	}
	for b := offset / naiveBlock; b*naiveBlock < offset+int64(len(p)); b++ {
		from, to := max(offset, b*naiveBlock), min(offset+int64(len(p)), (b+1)*naiveBlock)
		part := p[from-offset : to-offset]
		if v.cached[b] {
			if _, err := v.file.ReadAt(part, from); err != nil && err != io.EOF {
				return err
			}
			continue
		}
		block := make([]byte, naiveBlock)
		if err := v.fromSource(block, b*naiveBlock); err != nil {
			return err
		}
		copy(part, block[from-b*naiveBlock:])
		if _, err := v.file.WriteAt(block, b*naiveBlock); err == nil {
			v.cached[b] = true
			if v.defect == "believes its map after a crash" {
				if err := v.writeMap(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (v *naive) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	defer v.lock()()
	return v.change(ctx, bytes.Clone(p), offset, int64(len(p)), fua)
}

func (v *naive) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	defer v.lock()()
	if v.defect == "ignores trims" && z.Trim {
		return nil
	}
	return v.change(ctx, nil, offset, length, z.FUA)
}

func (v *naive) change(ctx context.Context, data []byte, offset, length int64, fua bool) error {
	if length == 0 {
		return nil
	}
	var err error
	switch v.Mode {
	case cache.Back:
		err = v.append(record{v.epoch, offset, length, data})
	case cache.Offline:
		if err = v.mark(ctx); err != nil {
			return err
		}
		v.dirty = true
		content := data
		if data == nil {
			content = make([]byte, length)
		}
		_, err = v.file.WriteAt(content, offset)
	default:
		err = v.through(data, offset, length)
	}
	if err == nil && fua && v.defect != "ignores FUA" {
		err = v.flush(ctx)
	}
	return err
}

func (v *naive) through(data []byte, offset, length int64) error {
	lazy := v.defect == "acknowledges before the source has it" && data != nil
	var err error
	if lazy {
		v.records = append(v.records, record{0, offset, length, data})
	} else {
		err = v.toSource(data, offset, length)
	}
	keep := err == nil && data != nil && v.Mode == cache.Through
	for b := offset / naiveBlock; b*naiveBlock < offset+length; b++ {
		from, to := max(offset, b*naiveBlock), min(offset+length, (b+1)*naiveBlock)
		if v.cached[b] && keep {
			if _, err := v.file.WriteAt(data[from-offset:to-offset], from); err == nil {
				continue
			}
		}
		if v.defect != "keeps what a write covers" {
			delete(v.cached, b)
		}
	}
	return err
}

func (v *naive) flush(ctx context.Context) error {
	if v.defect == "does not sync on flush" {
		return nil
	}
	switch v.Mode {
	case cache.Back:
		return v.endEpoch(ctx)
	case cache.Offline:
		if v.poison == nil {
			v.poison = v.file.Sync()
		}
		return v.poison
	}
	for _, r := range v.records {
		if err := v.toSource(r.data, r.offset, r.length); err != nil {
			return err
		}
	}
	v.records = nil
	return v.Source.Sync()
}

// The log: records of a header and data, at the tail.
func (v *naive) append(r record) error {
	header := make([]byte, 40)
	kind := uint64(1)
	if r.data == nil {
		kind = 2
	}
	for i, n := range []uint64{kind, r.epoch, uint64(r.offset), uint64(r.length)} {
		binary.LittleEndian.PutUint64(header[8+8*i:], n)
	}
	whole := append(header, r.data...)
	binary.LittleEndian.PutUint32(whole, crc32.ChecksumIEEE(whole[8:]))
	if v.defect == "keeps writes in memory" {
		v.unsaved = append(v.unsaved, whole)
	} else if _, err := v.file.WriteAt(whole, v.tail); err != nil {
		return err
	}
	v.tail += int64(len(whole))
	v.records = append(v.records, r)
	return nil
}

func (v *naive) replay() error {
	state, err := v.readState()
	if err != nil {
		return err
	}
	v.drained, v.epoch = state, state
	size, err := v.file.Size()
	if err != nil {
		return err
	}
	after := uint64(1)
	if v.defect == "goes on with the last epoch" {
		after = 0
	}
	for v.tail+40 <= size {
		header := make([]byte, 40)
		if _, err := v.file.ReadAt(header, v.tail); err != nil {
			return err
		}
		number := func(i int) int64 { return int64(binary.LittleEndian.Uint64(header[8+8*i:])) }
		r := record{uint64(number(1)), number(2), number(3), nil}
		kind := number(0)
		if kind < 1 || kind > 2 || r.length <= 0 || r.offset < 0 || r.offset+r.length > v.Size() {
			break
		}
		whole := header
		if kind == 1 {
			r.data = make([]byte, r.length)
			if n, err := v.file.ReadAt(r.data, v.tail+40); err != nil && err != io.EOF {
				return err
			} else if n < len(r.data) && v.defect != "believes torn records" {
				break
			}
			whole = append(header, r.data...)
		}
		if crc32.ChecksumIEEE(whole[8:]) != binary.LittleEndian.Uint32(whole) && v.defect != "believes torn records" {
			break
		}
		v.tail += int64(len(whole))
		v.epoch = max(v.epoch, r.epoch+after) // what was flushed is not to be mixed with what comes
		if r.epoch >= v.drained {
			v.records = append(v.records, r)
		}
	}
	return v.file.Truncate(v.tail)
}

func (v *naive) endEpoch(ctx context.Context) error {
	if len(v.records) > 0 {
		if err := v.mark(ctx); err != nil {
			return err
		}
	}
	for _, whole := range v.unsaved {
		if _, err := v.file.WriteAt(whole, v.tail-int64(len(whole))); err != nil {
			return err
		}
	}
	v.unsaved = nil
	if v.poison != nil && v.defect != "goes on after a failed sync" {
		return v.poison
	}
	if v.defect != "does not sync the log" {
		if v.poison = v.file.Sync(); v.poison != nil {
			return v.poison
		}
	}
	v.epoch++
	if v.flushes++; v.flushes%3 == 0 {
		if err := v.drain(1 + v.flushes%2); err != nil && !fault.Is(err, fault.Unavailable) {
			return err
		}
	}
	return nil
}

// drain some epochs that have ended.
func (v *naive) drain(epochs int) error {
	for ; epochs > 0 && len(v.records) > 0; epochs-- {
		first := v.records[0].epoch
		if v.defect == "drains the newest first" {
			first = v.records[len(v.records)-1].epoch
		}
		if first >= v.epoch {
			return nil
		}
		var rest []record
		for _, r := range v.records {
			if r.epoch != first && v.defect != "drains epochs together" {
				rest = append(rest, r)
			} else if err := v.toSource(r.data, r.offset, r.length); err != nil {
				return err
			}
		}
		if v.defect != "forgets the log before the source is durable" {
			if err := v.Source.Sync(); err != nil {
				return err
			}
		}
		if err := v.writeState(first + 1); err != nil {
			return err
		}
		v.records, v.drained = rest, first+1
	}
	return nil
}

func (v *naive) readState() (uint64, error) {
	f, err := v.Dir.Open("state")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(text), 10, 64)
}

func (v *naive) writeState(n uint64) error { return v.replace("state", []byte(fmt.Sprint(n))) }

func (v *naive) replace(name string, content []byte) error {
	f, err := v.Dir.Create(name + ".new")
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := v.Dir.Rename(name+".new", name); err != nil {
		return err
	}
	if v.defect == "does not sync names" {
		return nil
	}
	return v.Dir.Sync()
}

func (v *naive) writeMap() error {
	var content []byte
	for b := range v.cached {
		content = binary.LittleEndian.AppendUint64(content, uint64(b))
	}
	return v.replace("map", content)
}

func (v *naive) readMap() error {
	f, err := v.Dir.Open("map")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	content, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	for ; len(content) >= 8; content = content[8:] {
		v.cached[int64(binary.LittleEndian.Uint64(content))] = true
	}
	return err
}
