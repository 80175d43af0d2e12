package base

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/image"
)

const (
	maxPairs  = 1 << 20 // remembered in all, 8 bytes each
	windowLen = 1 << 20 // chunks compared at a time, 8 MiB of working memory
)

// pair is a chunk of this image that is the same as another: of a donor, or an earlier one of this image.
type pair struct{ own, other uint32 }

// pairs are sorted by own.
type pairs []pair

func (s pairs) find(chunk int) (other int, ok bool) {
	i := sort.Search(len(s), func(i int) bool { return int(s[i].own) >= chunk })
	if i == len(s) || int(s[i].own) != chunk {
		return 0, false
	}
	return int(s[i].other), true
}

// kin knows which chunks need no fetching.
type kin struct {
	twins  pairs // chunks that repeat an earlier one of the image
	donors []relative
}

// relative is a donor without its index.
type relative struct {
	open  func() (storage.File, error)
	has   func(chunk int) bool
	size  int64
	pairs pairs
}

// newKin compares the chunks of x with each other and with those of the donors. What does not fit into the memory
// for it is not known, and fetched.
func newKin(ctx context.Context, x *image.Index, donors []cache.Donor) kin {
	var k kin
	if int64(x.Chunks()) > math.MaxUint32 {
		return k
	}
	var usable []cache.Donor
	for _, d := range donors {
		if d.Index != nil && d.Open != nil && d.Has != nil && d.Index.ChunkSize() == x.ChunkSize() && int64(d.Index.Chunks()) <= math.MaxUint32 {
			usable = append(usable, d)
			k.donors = append(k.donors, relative{open: d.Open, has: d.Has, size: d.Index.Length()})
		}
	}
	left := maxPairs
	for first := 0; first < x.Chunks() && left > 0; first += windowLen {
		w := newWindow(x, first, min(windowLen, x.Chunks()-first))
		for i := first; i < first+w.count && left > 0 && ctx.Err() == nil; i++ {
			if x.IsZero(i) {
				continue
			}
			if same, ok := w.find(x.Chunk(i)); !ok {
				w.add(i)
			} else {
				k.twins = append(k.twins, pair{uint32(i), uint32(same)})
				left--
			}
		}
		for d, donor := range usable {
			r := &k.donors[d]
			from := len(r.pairs)
			for j := 0; j < donor.Index.Chunks() && left > 0 && ctx.Err() == nil; j++ {
				if i, ok := w.find(donor.Index.Chunk(j)); ok {
					r.pairs = append(r.pairs, pair{uint32(i), uint32(j)})
					left--
				}
			}
			slices.SortStableFunc(r.pairs[from:], func(a, b pair) int { return int(a.own) - int(b.own) })
			r.pairs = slices.CompactFunc(r.pairs, func(a, b pair) bool { return a.own == b.own })
		}
	}
	k.donors = slices.DeleteFunc(k.donors, func(r relative) bool { return len(r.pairs) == 0 })
	return k
}

// window is a table of the digests of some chunks.
type window struct {
	index *image.Index
	first int
	count int
	slots []uint32 // chunk - first + 1
}

func newWindow(x *image.Index, first, count int) *window {
	size := 64
	for size < 2*count {
		size *= 2
	}
	return &window{x, first, count, make([]uint32, size)}
}

func (w *window) find(digest []byte) (chunk int, ok bool) {
	for at := w.home(digest); w.slots[at] != 0; at = (at + 1) & (len(w.slots) - 1) {
		chunk := w.first + int(w.slots[at]) - 1
		if bytes.Equal(w.index.Chunk(chunk), digest) {
			return chunk, true
		}
	}
	return 0, false
}

func (w *window) add(chunk int) {
	at := w.home(w.index.Chunk(chunk))
	for w.slots[at] != 0 {
		at = (at + 1) & (len(w.slots) - 1)
	}
	w.slots[at] = uint32(chunk - w.first + 1)
}

func (w *window) home(digest []byte) int {
	return int(binary.LittleEndian.Uint64(digest) & uint64(len(w.slots)-1))
}

// inherit fills p with chunk i from a donor and verifies it. kept says that it is in the data file already.
func (b *base) inherit(i int, p []byte) (ok, kept bool) {
	for d := range b.kin().donors {
		r := &b.kin().donors[d]
		j, found := r.pairs.find(i)
		if !found || !r.has(j) {
			continue
		}
		ok, kept = b.copyFrom(r, j, i, p)
		if ok {
			b.donated.Add(int64(len(p)))
			return ok, kept
		}
	}
	return false, false
}

func (b *base) copyFrom(r *relative, from, to int, p []byte) (ok, kept bool) {
	f, err := r.open()
	if err != nil {
		return false, false // it went away
	}
	defer f.Close()
	target, length := b.index.Range(to)
	source := int64(from) << b.shift
	if source+int64(length) > r.size {
		return false, false
	}
	if b.reserve(length) == nil {
		failures := b.failures()
		// What was cloned is verified as it now is here: the donor may lose the chunk at any time.
		if cloneRange(b.data, target, f, source, length) {
			if n, _ := b.data.ReadAt(p, target); n == length && b.index.VerifyChunk(to, p) == nil {
				b.arrive(to, failures)
				return true, true
			}
		}
		b.unreserve(length)
	}
	n, _ := f.ReadAt(p, source)
	return n == length && b.index.VerifyChunk(to, p) == nil, false
}

// cloneRange shares blocks between two files where they and the file system can.
func cloneRange(dst storage.File, to int64, src storage.File, from int64, length int) bool {
	const block = 4096
	d, ok1 := dst.(storage.Descriptor)
	s, ok2 := src.(storage.Descriptor)
	if !ok1 || !ok2 || to%block != 0 || from%block != 0 || length%block != 0 {
		return false
	}
	return unix.IoctlFileCloneRange(int(d.Fd()), &unix.FileCloneRange{Src_fd: int64(s.Fd()), Src_offset: uint64(from),
		Src_length: uint64(length), Dest_offset: uint64(to)}) == nil
}
