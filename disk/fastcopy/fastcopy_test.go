package fastcopy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"hayloft/cloud/fault"
	"hayloft/disk/fastcopy"
	"hayloft/image"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// source is an image in memory, which may know its holes, and read some chunks wrong for the first times.
type source struct {
	content []byte
	mu      sync.Mutex
	wrong   map[int64]int // by offset of a byte: how often it is read wrong
	reads   atomic.Int64
	hook    func()
}

func (s *source) ReadAt(p []byte, offset int64) (int, error) {
	s.reads.Add(1)
	if s.hook != nil {
		s.hook()
	}
	n := copy(p, s.content[min(offset, int64(len(s.content))):])
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, times := range s.wrong {
		if times > 0 && at >= offset && at < offset+int64(n) {
			p[at-offset] ^= 0xFF
			s.wrong[at]--
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// holed knows holes to the byte.
type holed struct{ *source }

func (h holed) NextData(offset int64) (int64, int64, error) {
	data := func(b byte) bool { return b != 0 }
	if offset >= int64(len(h.content)) {
		return 0, 0, io.EOF
	}
	i := bytes.IndexFunc(h.content[offset:], func(r rune) bool { return r != 0 })
	if i < 0 {
		return 0, 0, io.EOF
	}
	start := offset + int64(i)
	end := start
	for end < int64(len(h.content)) && data(h.content[end]) {
		end++
	}
	return start, end, nil
}

// random content with runs of zeros.
func random(r *rand.Rand, size int) []byte {
	content := make([]byte, size)
	for at := 0; at < size; {
		n := min(1+r.IntN(200<<10), size-at)
		if r.IntN(2) == 0 {
			for i := range n {
				content[at+i] = byte(1 + r.IntN(255))
			}
		}
		at += n
	}
	return content
}

func indexOf(t interface{ Fatal(...any) }, content []byte) *image.Index {
	index, _, err := image.Scan(context.Background(), nil, bytes.NewReader(content), int64(len(content)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func TestCopiesAnything(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		src := &source{content: random(r, rapid.IntRange(0, 1<<20).Draw(t, "size")), wrong: map[int64]int{}}
		s := fastcopy.Spec{Source: src, Size: int64(len(src.content)), Zeros: rapid.Bool().Draw(t, "zeros"),
			Depth: rapid.IntRange(1, 5).Draw(t, "depth"), Block: rapid.SampledFrom([]int{1, 64 << 10, 100_000, 256 << 10}).Draw(t, "block")}
		if rapid.Bool().Draw(t, "holes") {
			s.Source = holed{src}
		}
		if rapid.Bool().Draw(t, "index") {
			s.Index = indexOf(t, src.content)
			if len(src.content) > 0 && rapid.Bool().Draw(t, "flaky") {
				src.wrong[int64(r.IntN(len(src.content)))] = 2
			}
		}
		before := make([]byte, len(src.content)+rapid.IntRange(0, 9000).Draw(t, "longer"))
		if !s.Zeros {
			for i := range before {
				before[i] = 0xA5
			}
		}
		path := filepath.Join(dir, "target")
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		var last fastcopy.Progress
		s.Report = func(p fastcopy.Progress) {
			if p.Done < last.Done || p.Done > p.Total || p.Rate < 0 {
				t.Fatalf("%+v after %+v", p, last)
			}
			last = p
		}
		result, err := fastcopy.ToPath(context.Background(), path, s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := append(bytes.Clone(src.content), before[len(src.content):]...); !bytes.Equal(got, want) {
			t.Fatalf("wrong from byte %d on: %+v", mismatch(got, want), result)
		}
		if last.Done != last.Total {
			t.Fatalf("at the end %+v", last)
		}
		if sum := result.Written + result.Zeroed + result.Skipped; sum != int64(len(src.content)) {
			t.Fatalf("%+v of %d", result, len(src.content))
		}
		memory := &memory{content: before}
		if _, err := fastcopy.ToWriter(context.Background(), memory, s2(s)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(memory.content[:len(src.content)], src.content) {
			t.Fatal("to a writer: wrong")
		}
	})
}

func s2(s fastcopy.Spec) fastcopy.Spec { s.Report = nil; return s }

type memory struct {
	mu      sync.Mutex
	content []byte
}

func (m *memory) WriteAt(p []byte, offset int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.content[offset:], p), nil
}

func mismatch(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func target(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWrongContentIsNeverWritten(t *testing.T) {
	content := bytes.Repeat([]byte{7}, 1<<20)
	index := indexOf(t, content)
	src := &source{content: content, wrong: map[int64]int{300_000: 1 << 30}}
	path := target(t, len(content))
	_, err := fastcopy.ToPath(t.Context(), path, fastcopy.Spec{Source: src, Index: index, Zeros: true, Block: 64 << 10})
	if !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "chunk 4") || !strings.Contains(err.Error(), path) {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if chunk := got[4*image.ChunkSize : 5*image.ChunkSize]; !bytes.Equal(chunk, make([]byte, image.ChunkSize)) {
		t.Error("the wrong chunk was written")
	}
}

func TestZerosAreNotRead(t *testing.T) {
	content := make([]byte, 8<<20)
	content[5<<20] = 1
	src := &source{content: content}
	var p fastcopy.Progress
	result, err := fastcopy.ToPath(t.Context(), target(t, len(content)), fastcopy.Spec{Source: src, Index: indexOf(t, content), Zeros: true,
		Report: func(now fastcopy.Progress) { p = now }})
	if err != nil || result.Read != image.ChunkSize || result.Written != image.ChunkSize {
		t.Error(result, err)
	}
	if p.Total != image.ChunkSize || p.Done != p.Total {
		t.Errorf("%+v", p)
	}
}

func TestRefusals(t *testing.T) {
	content := []byte("abc")
	gone := errors.New("gone")
	for _, row := range []struct {
		name  string
		path  string
		spec  fastcopy.Spec
		class fault.Class
	}{
		{"no target", filepath.Join(t.TempDir(), "none"), fastcopy.Spec{Source: bytes.NewReader(content), Size: 3}, fault.NotFound},
		{"a directory", t.TempDir(), fastcopy.Spec{Source: bytes.NewReader(content), Size: 3}, fault.Invalid},
		{"too short a source", target(t, 0), fastcopy.Spec{Source: bytes.NewReader(content), Size: 4}, fault.Corrupt},
		{"another size", target(t, 0), fastcopy.Spec{Source: bytes.NewReader(content), Size: 4, Index: indexOf(t, content)}, fault.Invalid},
		{"a negative size", target(t, 0), fastcopy.Spec{Source: bytes.NewReader(content), Size: -1}, fault.Invalid},
		{"a source that is gone", target(t, 0), fastcopy.Spec{Source: failing{fault.As(fault.Unavailable, gone)}, Size: 4}, fault.Unavailable},
	} {
		if _, err := fastcopy.ToPath(t.Context(), row.path, row.spec); !fault.Is(err, row.class) || !strings.Contains(err.Error(), row.path) {
			t.Errorf("%s: %v is %v, want %v", row.name, err, fault.ClassOf(err), row.class)
		}
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// A source that is far away costs its delay once for all that is on its way, not once for each block.
func TestReadsAhead(t *testing.T) {
	content := bytes.Repeat([]byte{1}, 32*64<<10)
	path := target(t, 0)
	synctest.Test(t, func(t *testing.T) {
		src := &source{content: content, hook: func() { time.Sleep(100 * time.Millisecond) }}
		began := time.Now()
		if _, err := fastcopy.ToPath(t.Context(), path, fastcopy.Spec{Source: src, Size: int64(len(content)), Block: 64 << 10, Depth: 16}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 200*time.Millisecond {
			t.Errorf("32 blocks, 16 at a time, 100 ms each: %s", took)
		}
	})
}

func TestEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	src := &source{content: bytes.Repeat([]byte{1}, 4<<20), hook: cancel}
	_, err := fastcopy.ToPath(ctx, target(t, 0), fastcopy.Spec{Source: src, Size: 4 << 20, Block: 64 << 10, Depth: 2})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := src.reads.Load(); n > 4 {
		t.Errorf("%d reads after the end", n)
	}
}
