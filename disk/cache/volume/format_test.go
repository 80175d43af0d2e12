package volume

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
)

func FuzzRecord(f *testing.F) {
	r := record{kind: writeRecord, id: 7, sequence: 3, pos: 1024, epoch: 2, offset: 4096, length: 700, durable: 512}
	b := make([]byte, recordSize)
	r.encode(b)
	f.Add(b, uint64(7), uint64(1024))
	f.Fuzz(func(t *testing.T, b []byte, id, pos uint64) {
		pos = pos % (1 << 40) / logAlign * logAlign
		r, ok := parseRecord(b, id, pos, minLog, 1<<30)
		if !ok {
			return
		}
		if s := r.size(); s <= 0 || s%logAlign != 0 || s > minLog-int64(pos%minLog) || !r.inside(1<<30) && r.kind <= zeroNoHoleRecord {
			t.Fatalf("accepted %+v", r)
		}
		again := make([]byte, recordSize)
		r.encode(again)
		if got, ok := parseRecord(again, id, pos, minLog, 1<<30); !ok || got != r {
			t.Fatalf("%+v became %+v", r, got)
		}
	})
}

func FuzzHeader(f *testing.F) {
	h := logHeader{id: 1, generation: 2, ring: minLog, tail: 512, sequence: 4, epoch: 5, durable: 1024}
	b := make([]byte, headerSize)
	h.encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		again := make([]byte, headerSize)
		h.encode(again)
		if got, err := parseHeader(again); err != nil || got != h {
			t.Fatalf("%+v became %+v, %v", h, got, err)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"format":1,"mode":"BACK","size":100,"boot":"x","clean":true,"generation":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseState(b); err == nil && (s.Size < 0 || !known(s.Mode) || s.Loaded > chunksOf(s.Size)) {
			t.Fatalf("accepted %+v", s)
		}
	})
}

// FuzzMap: a map of which a block is damaged loses that block's bits, and nothing else.
func FuzzMap(f *testing.F) {
	f.Add(uint(3), byte(1))
	f.Add(uint(mapBlock+9), byte(128))
	f.Fuzz(func(t *testing.T, at uint, flip byte) {
		const size = 2*bitsOfBlock + 10
		file, err := faulty.New(1).Create("map")
		if err != nil {
			t.Fatal(err)
		}
		m := newBitmap(file, 5, size)
		if err := m.set(100, size-5); err != nil {
			t.Fatal(err)
		}
		at %= 3 * mapBlock
		b := make([]byte, 1)
		file.ReadAt(b, int64(at))
		b[0] ^= flip
		file.WriteAt(b, int64(at))
		got := newBitmap(file, 5, size)
		right, err := got.load(false)
		if err != nil || right != (flip == 0) {
			t.Fatalf("right %v, %v", right, err)
		}
		for i := range int64(size) {
			want := i >= 100 && i < size-5 && (flip == 0 || i/bitsOfBlock != int64(at/mapBlock))
			if got.has(i) != want {
				t.Fatalf("bit %d is %v", i, got.has(i))
			}
		}
		if n := got.count.Load(); n < 0 || n > size {
			t.Fatalf("count %d", n)
		}
	})
}

// FuzzLog: whatever a log's file holds, opening ends, with an error or with a disk that can be read.
func FuzzLog(f *testing.F) {
	f.Add(uint(logStart), byte(1), uint64(1))
	f.Add(uint(0), byte(255), uint64(2))
	f.Fuzz(func(t *testing.T, at uint, flip byte, seed uint64) {
		b := newBench(t.Fatalf, 1, 4*chunkSize, 4*chunkSize, cache.Back, 0)
		b.open()
		r := rand.New(rand.NewPCG(seed, 1))
		for range 20 {
			b.write(pattern(1+r.IntN(3000), byte(r.Uint32())), r.IntN(3*chunkSize), r.IntN(3) == 0)
		}
		b.kill()
		file, err := b.host.Dir().Open(logFile)
		if err != nil {
			t.Fatal(err)
		}
		const part = 1 << 17 // of the file, with all that was written
		if size, err := file.Size(); err != nil || size < part {
			t.Fatalf("the log's file has %d bytes, %v", size, err)
		}
		p := make([]byte, 1)
		offset := int64(at % part)
		if _, err := file.ReadAt(p, offset); err != nil {
			t.Fatal(err)
		}
		p[0] ^= flip
		if _, err := file.WriteAt(p, offset); err != nil {
			t.Fatal(err)
		}
		c := b.config
		c.Dir, c.Source, c.Boot = b.host.Dir(), b.source.Open(b.host), "boot 1"
		v, err := Open(context.Background(), c)
		if err != nil {
			if !fault.Is(err, fault.Corrupt) && !fault.Is(err, fault.Unsupported) {
				t.Fatal(err)
			}
			return
		}
		defer v.Close()
		if err := v.ReadAt(context.Background(), make([]byte, c.Size), 0); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSpansAreLikeAnArray(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 400
		var x spans
		var want [size]uint64 // position of each byte's content, 0: none
		pos := uint64(1000)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				start := rapid.Int64Range(0, size-1).Draw(t, "start")
				end := rapid.Int64Range(start+1, min(size, start+60)).Draw(t, "end")
				s := span{start: start, end: end, pos: pos}
				if rapid.Bool().Draw(t, "zero") {
					s.pos |= zeroSpan
				}
				x.put(s)
				for i := start; i < end; i++ {
					want[i] = s.from(i).pos
				}
				pos += 1000
			},
			"remove": func(t *rapid.T) {
				start := rapid.Int64Range(0, size-1).Draw(t, "start")
				end := rapid.Int64Range(start+1, size).Draw(t, "end")
				before := rapid.Uint64Range(0, pos/1000).Draw(t, "before") * 1000
				x.remove(start, end, before)
				for i := start; i < end; i++ {
					if want[i]&posMask < before {
						want[i] = 0
					}
				}
			},
			"": func(t *rapid.T) {
				at, n := int64(0), 0
				for {
					s, ok := x.next(at)
					if !ok {
						break
					}
					for ; at < s.start; at++ {
						if want[at] != 0 {
							t.Fatalf("byte %d is missing", at)
						}
					}
					for ; at < s.end; at++ {
						if want[at] != s.from(at).pos {
							t.Fatalf("byte %d is at %d instead of %d", at, s.from(at).pos, want[at])
						}
					}
					n++
				}
				for ; at < size; at++ {
					if want[at] != 0 {
						t.Fatalf("byte %d is missing", at)
					}
				}
				if n != x.n {
					t.Fatalf("%d spans, counted %d", n, x.n)
				}
			},
		})
	})
}

func TestManySpans(t *testing.T) {
	var x spans
	r := rand.New(rand.NewPCG(1, 1))
	for range 20000 {
		at := r.Int64N(1 << 30)
		x.put(span{start: at, end: at + 512, pos: uint64(at)})
	}
	at, n := int64(0), 0
	for s, ok := x.next(at); ok; s, ok = x.next(at) {
		if s.start < at || s.end <= s.start {
			t.Fatalf("span %+v at %d", s, at)
		}
		at = s.end
		n++
	}
	if n != x.n || n < 19000 {
		t.Fatalf("%d spans, counted %d", n, x.n)
	}
	for _, b := range x.blocks {
		if len(b) == 0 || len(b) > spansOfBlock {
			t.Fatalf("a block of %d", len(b))
		}
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 511, chunkSize, len(zeros) + 3} {
		p := make([]byte, n)
		if !isZero(p) || n > 0 && isZero(append(bytes.Clone(p), 1)) {
			t.Errorf("%d bytes", n)
		}
	}
}
