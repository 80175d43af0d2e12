package image

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
)

// batchSize is what one worker reads at a time, in bytes: large enough for storage, small enough for caches.
const batchSize = 1 << 20

// Extents is what a source has that knows its holes: NextData is the first range [start, end) with data at or
// after offset, io.EOF when there is none.
type Extents interface {
	NextData(offset int64) (start, end int64, err error)
}

// batch is a run of whole chunks.
type batch struct{ first, count int }

// fetch reads chunks [first, first+count) into buf and verifies them; one that does not match is read once more.
func (x *Index) fetch(src io.ReaderAt, first, count int, buf []byte) error {
	offset, _ := x.Range(first)
	if err := readFull(src, buf, offset); err != nil {
		return err
	}
	for i := first; i < first+count; i++ {
		at, length := x.Range(i)
		chunk := buf[at-offset:][:length]
		if x.VerifyChunk(i, chunk) == nil {
			continue
		}
		if err := readFull(src, chunk, at); err != nil {
			return err
		}
		if err := x.VerifyChunk(i, chunk); err != nil {
			return err
		}
	}
	return nil
}

func readFull(src io.ReaderAt, buf []byte, offset int64) error {
	n, err := src.ReadAt(buf, offset)
	if n == len(buf) {
		return nil
	}
	if err == nil || err == io.EOF {
		return fault.Errorf(fault.Corrupt, "truncated: ends at byte %d", offset+int64(n))
	}
	return err
}

// CopyTo copies the image that x describes from src to dst, verifying every chunk, on several cores. dst must
// read as zeros before: chunks of zeros are neither read nor written. It returns how many bytes it read from
// src. A chunk that does not match is read a second time, then the error is fault.Corrupt and names the chunk.
// report may be nil; it gets bytes of data copied so far, from one goroutine at a time.
func (x *Index) CopyTo(ctx context.Context, dst io.WriterAt, src io.ReaderAt, report func(done int64)) (int64, error) {
	next := 0
	plan := func() (batch, error) {
		for next < x.Chunks() && x.IsZero(next) {
			next++
		}
		b := batch{first: next}
		for next < x.Chunks() && !x.IsZero(next) && b.count < max(1, batchSize/x.chunkSize) {
			next, b.count = next+1, b.count+1
		}
		if b.count == 0 {
			return b, io.EOF
		}
		return b, nil
	}
	var read atomic.Int64
	err := x.forEach(ctx, plan, func(b batch, buf []byte) (int64, error) {
		if err := x.fetch(src, b.first, b.count, buf); err != nil {
			return 0, err
		}
		read.Add(int64(len(buf)))
		offset, _ := x.Range(b.first)
		_, err := dst.WriteAt(buf, offset)
		return int64(len(buf)), err
	}, report)
	return read.Load(), err
}

// Scan makes the index of size bytes of src on several cores, in one pass, and copies them to dst on the way
// when dst is not nil. dst must read as zeros before; chunks of zeros are not written, and holes that src knows
// of (Extents) are not read. It returns the index and the bytes of chunks that are not zero.
func Scan(ctx context.Context, dst io.WriterAt, src io.ReaderAt, size int64, report func(done int64)) (*Index, int64, error) {
	x, err := NewIndex(size, ChunkSize)
	if err != nil {
		return nil, 0, err
	}
	var stored atomic.Int64
	err = x.forEach(ctx, planData(x, src), func(b batch, buf []byte) (int64, error) {
		offset, _ := x.Range(b.first)
		if err := readFull(src, buf, offset); err != nil {
			return 0, err
		}
		from := 0 // start in buf of a run of data not yet written
		for i := b.first; i < b.first+b.count; i++ {
			at, length := x.Range(i)
			start := int(at - offset)
			chunk := buf[start : start+length]
			if !isZero(chunk) {
				x.set(i, blake3.Sum256(chunk))
				stored.Add(int64(length))
				continue
			}
			if err := writeRun(dst, buf[from:start], offset+int64(from)); err != nil {
				return 0, err
			}
			from = start + length
		}
		return int64(len(buf)), writeRun(dst, buf[from:], offset+int64(from))
	}, report)
	return x, stored.Load(), err
}

// planData hands out the chunks that src has data in.
func planData(x *Index, src io.ReaderAt) func() (batch, error) {
	extents, _ := src.(Extents)
	next, end := 0, 0 // chunks
	if extents == nil {
		end = x.Chunks()
	}
	return func() (batch, error) {
		if next >= end && next < x.Chunks() {
			offset, _ := x.Range(next)
			from, to, err := extents.NextData(offset)
			if err != nil {
				return batch{}, err
			}
			size := int64(x.chunkSize)
			next, end = max(next, int(from/size)), min(x.Chunks(), int((to+size-1)/size))
		}
		b := batch{first: next, count: min(end-next, batchSize/x.chunkSize)}
		if b.count <= 0 {
			return b, io.EOF
		}
		next += b.count
		return b, nil
	}
}

func writeRun(dst io.WriterAt, p []byte, offset int64) error {
	if dst == nil || len(p) == 0 {
		return nil
	}
	_, err := dst.WriteAt(p, offset)
	return err
}

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

var zeros [4096]byte // never written to

// forEach runs do on all that plan hands out until io.EOF, on as many workers as there are cores.
func (x *Index) forEach(ctx context.Context, plan func() (batch, error), do func(batch, []byte) (int64, error), report func(int64)) error {
	var (
		mu   sync.Mutex
		done int64
	)
	group, ctx := errgroup.WithContext(ctx)
	for range min(8, max(2, runtime.GOMAXPROCS(0))) {
		group.Go(func() error {
			buf := make([]byte, max(batchSize, x.chunkSize))
			for {
				if err := ctx.Err(); err != nil {
					return err
				}
				mu.Lock()
				b, err := plan()
				mu.Unlock()
				if err == io.EOF {
					return nil
				}
				if err != nil {
					return err
				}
				start, _ := x.Range(b.first)
				last, length := x.Range(b.first + b.count - 1)
				n, err := do(b, buf[:last-start+int64(length)])
				if err != nil {
					return err
				}
				mu.Lock()
				done += n
				if report != nil {
					report(done)
				}
				mu.Unlock()
			}
		})
	}
	return group.Wait()
}
