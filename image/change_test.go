package image

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// counting counts the bytes read.
type counting struct {
	memory
	read atomic.Int64
}

func (c *counting) ReadAt(p []byte, o int64) (int, error) {
	c.read.Add(int64(len(p)))
	return copy(p, c.memory[o:]), nil
}

func TestChangeIsAsAScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := make([]byte, rapid.IntRange(1, 6*ChunkSize).Draw(t, "before"))
		for i := 0; i < len(before); i += 997 {
			before[i] = byte(i)
		}
		after := append(bytes.Clone(before), make([]byte, rapid.IntRange(0, 3*ChunkSize).Draw(t, "more"))...)
		var spans []Span
		for range rapid.IntRange(0, 4).Draw(t, "spans") {
			at := rapid.IntRange(0, len(after)-1).Draw(t, "at")
			n := rapid.IntRange(0, min(ChunkSize, len(after)-at)).Draw(t, "n")
			value := byte(rapid.IntRange(0, 2).Draw(t, "value"))
			for i := at; i < at+n; i++ {
				after[i] = value
			}
			spans = append(spans, Span{int64(at), int64(n)})
		}
		from, _, err := Scan(context.Background(), nil, bytes.NewReader(before), int64(len(before)), nil)
		if err != nil {
			t.Fatal(err)
		}
		want, _, err := Scan(context.Background(), nil, bytes.NewReader(after), int64(len(after)), nil)
		if err != nil {
			t.Fatal(err)
		}
		dst := memory(append(bytes.Clone(before), make([]byte, len(after)-len(before))...))
		x, _, err := Change(context.Background(), dst, from, bytes.NewReader(after), int64(len(after)), spans, nil)
		if err != nil {
			t.Fatal(err)
		}
		if x.Digest() != want.Digest() || !bytes.Equal(dst, after) {
			t.Fatal("not as it is")
		}
	})
}

func TestChangeMovesWhatDiffers(t *testing.T) {
	before := make([]byte, 100*ChunkSize)
	for i := range before {
		before[i] = byte(i / 7)
	}
	from, _, err := Scan(t.Context(), nil, bytes.NewReader(before), int64(len(before)), nil)
	if err != nil {
		t.Fatal(err)
	}
	src := &counting{memory: bytes.Clone(before)}
	src.memory[40*ChunkSize+5]++
	spans := []Span{{40*ChunkSize + 5, 1}, {70 * ChunkSize, 2 * ChunkSize}} // the second was written with what was there
	_, moved, err := Change(t.Context(), memory(bytes.Clone(before)), from, src, int64(len(before)), spans, nil)
	if err != nil || moved != ChunkSize || src.read.Load() != 3*ChunkSize {
		t.Errorf("moved %d, read %d, %v", moved, src.read.Load(), err)
	}
	if _, _, err := Change(t.Context(), nil, from, src, 5, nil, nil); err == nil {
		t.Error("made shorter")
	}
}
