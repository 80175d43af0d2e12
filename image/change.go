package image

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync/atomic"

	"github.com/zeebo/blake3"

	"hayloft/cloud/fault"
)

// Span is a range of an image, in bytes.
type Span struct{ Offset, Length int64 }

// Change makes the index of size bytes of src, which may differ from the image of the index from inside spans and beyond its end
// only, and makes dst, which has the content of from and is of that size, have that of src. Only chunks that spans touch are
// read, and only those that differ are written: moved says how many bytes. report may be nil; it gets bytes read so far.
func Change(ctx context.Context, dst io.WriterAt, from *Index, src io.ReaderAt, size int64, spans []Span, report func(done int64)) (x *Index, moved int64, err error) {
	if size < from.length {
		return nil, 0, fault.Errorf(fault.Invalid, "%d bytes are less than the %d before", size, from.length)
	}
	if x, err = NewIndex(size, from.chunkSize); err != nil {
		return nil, 0, err
	}
	touched := x.chunksOf(spans)
	for i := range from.Chunks() {
		_, before := from.Range(i)
		if _, now := x.Range(i); now != before { // the last one, which has become longer
			touched = append(touched, i)
		}
		copy(x.Chunk(i), from.Chunk(i))
	}
	slices.Sort(touched)
	touched = slices.Compact(touched)
	var written atomic.Int64
	err = x.forEach(ctx, planChunks(touched, max(1, batchSize/x.chunkSize)), func(b batch, buf []byte) (int64, error) {
		offset, _ := x.Range(b.first)
		if err := readFull(src, buf, offset); err != nil {
			return 0, err
		}
		from := 0 // start in buf of a run of chunks that differ
		flush := func(to int) error {
			written.Add(int64(to - from))
			return writeRun(dst, buf[from:to], offset+int64(from))
		}
		for i := b.first; i < b.first+b.count; i++ {
			at, length := x.Range(i)
			start := int(at - offset)
			digest := blake3.Sum256(buf[start : start+length])
			if !bytes.Equal(digest[:], x.Chunk(i)) {
				x.set(i, digest)
				continue
			}
			if err := flush(start); err != nil {
				return 0, err
			}
			from = start + length
		}
		return int64(len(buf)), flush(len(buf))
	}, report)
	return x, written.Load(), err
}

// chunksOf are the chunks that spans touch, in no order.
func (x *Index) chunksOf(spans []Span) (list []int) {
	for _, s := range spans {
		if s.Length <= 0 {
			continue
		}
		last := min(x.length, s.Offset+s.Length) - 1
		for i := s.Offset / int64(x.chunkSize); i <= last/int64(x.chunkSize); i++ {
			list = append(list, int(i))
		}
	}
	return list
}

// planChunks hands out the chunks of a sorted list, neighbours together.
func planChunks(list []int, most int) func() (batch, error) {
	return func() (batch, error) {
		if len(list) == 0 {
			return batch{}, io.EOF
		}
		b := batch{first: list[0], count: 1}
		for b.count < min(most, len(list)) && list[b.count] == b.first+b.count {
			b.count++
		}
		list = list[b.count:]
		return b, nil
	}
}
