package image

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hayloft/cloud/fault"
)

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func scan(t *testing.T, content []byte) *Index {
	t.Helper()
	x, _, err := Scan(context.Background(), nil, bytes.NewReader(content), int64(len(content)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

type memory []byte

func (m memory) WriteAt(p []byte, o int64) (int, error) { return copy(m[o:], p), nil }

func TestIndexRoundTripAndCopy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Pieces of zeros and data, so that holes begin and end anywhere.
		var content []byte
		for range rapid.IntRange(0, 5).Draw(t, "pieces") {
			n := rapid.IntRange(1, 300_000).Draw(t, "length")
			if rapid.Bool().Draw(t, "zeros") {
				content = append(content, make([]byte, n)...)
			} else {
				content = append(content, random(n)...)
			}
		}
		copied := make(memory, len(content))
		x, stored, err := Scan(context.Background(), copied, bytes.NewReader(content), int64(len(content)), nil)
		if err != nil || !bytes.Equal(copied, content) {
			t.Fatalf("scan: %v, equal %v", err, bytes.Equal(copied, content))
		}
		if stored != x.DataBytes() {
			t.Fatalf("stored %d, data %d", stored, x.DataBytes())
		}
		y, err := UnmarshalIndex(x.Marshal())
		if err != nil || y.Digest() != x.Digest() || y.Length() != int64(len(content)) {
			t.Fatalf("unmarshal: %v", err)
		}
		again := make(memory, len(content))
		read, err := y.CopyTo(context.Background(), again, bytes.NewReader(content), nil)
		if err != nil || !bytes.Equal(again, content) || read != stored {
			t.Fatalf("copy: %v, read %d of %d", err, read, stored)
		}
		front, err := io.ReadAll(y.Reader(bytes.NewReader(content)))
		if err != nil || !bytes.Equal(front, content) {
			t.Fatalf("reader: %v", err)
		}
		if len(content) > 0 {
			at := rapid.IntRange(0, len(content)-1).Draw(t, "flip")
			chunk := at / ChunkSize
			offset, length := y.Range(chunk)
			bad := bytes.Clone(content[offset : offset+int64(length)])
			bad[at-int(offset)] ^= 1
			if err := y.VerifyChunk(chunk, bad); !fault.Is(err, fault.Corrupt) {
				t.Fatalf("flipped bit: %v", err)
			}
		}
	})
}

func TestUnmarshalIndexErrors(t *testing.T) {
	good := scan(t, random(200_000)).Marshal()
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	for _, c := range []struct {
		name, want string
		file       []byte
	}{
		{"empty", "truncated", nil},
		{"half a header", "truncated", good[:40]},
		{"last byte gone", "truncated: 223 bytes of 224", good[:len(good)-1]},
		{"a byte more", "wrong length: 1 bytes after", append(bytes.Clone(good), 0)},
		{"magic", "wrong magic", edit(func(b []byte) []byte { b[0] ^= 1; return b })},
		{"version", "version 9", edit(func(b []byte) []byte { b[11] = 9; return b })},
		{"chunk size", "wrong chunk size", edit(func(b []byte) []byte { b[15] = 3; return b })},
		{"length", "wrong length", edit(func(b []byte) []byte { b[20] = 1; return b })},
		{"reserved", "unknown header field", edit(func(b []byte) []byte { b[50] = 1; return b })},
		{"digest", "checksum", edit(func(b []byte) []byte { b[100] ^= 1; return b })},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := UnmarshalIndex(c.file)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzUnmarshalIndex(f *testing.F) {
	x, _ := NewIndex(100_000, ChunkSize)
	f.Add(x.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := UnmarshalIndex(b)
		if err == nil && !bytes.Equal(x.Marshal(), b) {
			t.Fatal("accepted what it would write otherwise")
		}
	})
}

// flaky gives wrong bytes on the first read of one chunk.
type flaky struct {
	io.ReaderAt
	chunk int64
	times int
}

func (f *flaky) ReadAt(p []byte, offset int64) (int, error) {
	n, err := f.ReaderAt.ReadAt(p, offset)
	if at := f.chunk * ChunkSize; at >= offset && at < offset+int64(n) && f.times > 0 { // one goroutine reads a chunk
		f.times--
		p[at-offset] ^= 1
	}
	return n, err
}

func TestCopyReadsTwiceThenNamesTheChunk(t *testing.T) {
	content := random(5 * ChunkSize)
	x := scan(t, content)
	if _, err := x.CopyTo(context.Background(), make(memory, len(content)), &flaky{bytes.NewReader(content), 3, 1}, nil); err != nil {
		t.Fatalf("wrong once: %v", err)
	}
	_, err := x.CopyTo(context.Background(), make(memory, len(content)), &flaky{bytes.NewReader(content), 3, 2}, nil)
	if !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "chunk 3") {
		t.Fatalf("wrong twice: %v", err)
	}
	_, err = x.CopyTo(context.Background(), make(memory, len(content)), bytes.NewReader(content[:len(content)-9]), nil)
	if !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "truncated") {
		t.Fatalf("short: %v", err)
	}
}

func TestZeroImageCostsNothing(t *testing.T) {
	x, err := NewIndex(10*ChunkSize+7, ChunkSize)
	if err != nil {
		t.Fatal(err)
	}
	for i := range x.Chunks() {
		if !x.IsZero(i) {
			t.Fatalf("chunk %d is not zero", i)
		}
	}
	if d := scan(t, make([]byte, 10*ChunkSize+7)).Digest(); d != x.Digest() {
		t.Fatalf("zeros have digest %s and %s", d, x.Digest())
	}
	read, err := x.CopyTo(context.Background(), nil, nil, nil)
	if read != 0 || err != nil {
		t.Fatalf("read %d, %v", read, err)
	}
}

func TestCheckName(t *testing.T) {
	for name, good := range map[string]bool{"tiny": true, "a b+c_1.img": true, "ü": true, "": false, "a/b": false, "a\nb": false,
		"..": false, ".x": false, "-x": false, "a\\b": false, "\xff": false, "a\u202eb": false, strings.Repeat("a", 201): false} {
		if err := CheckName(name); (err == nil) != good || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCheckImageName(t *testing.T) {
	for name, good := range map[string]bool{"tiny": true, "tiny.img": true, "profile": true, "tiny.idx": false,
		"tiny.profile": false, "a/b": false, ".profile": false} {
		if err := CheckImageName(name); (err == nil) != good || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
