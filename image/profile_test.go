package image

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"hayloft/cloud/fault"
)

func profiled(t interface{ Fatal(...any) }, chunks int) *Index {
	x, err := NewIndex(int64(chunks)*ChunkSize, ChunkSize)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestProfileReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "chunks")
		x := profiled(t, n)
		want := rapid.SliceOfDistinct(rapid.IntRange(0, n-1), rapid.ID[int]).Draw(t, "touched")
		b, err := MarshalProfile(x, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := UnmarshalProfile(b, x)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v of %v, %v", got, want, err)
		}
	})
}

func TestProfileRefusesWhatIsNotOfTheImage(t *testing.T) {
	x := profiled(t, 10)
	good, err := MarshalProfile(x, []int{7, 8, 9, 0, 8})
	if err != nil || len(good) != profileHeader+4+4 { // a byte for each chunk, the last was named before
		t.Fatalf("%d bytes, %v", len(good), err)
	}
	other, err := MarshalProfile(profiled(t, 11), []int{1})
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func([]byte) []byte) []byte { // with a checksum that is right
		b := change(bytes.Clone(good[:len(good)-4]))
		return binary.BigEndian.AppendUint32(b, profileSum(b))
	}
	steps := func(s ...int64) []byte {
		return edit(func(b []byte) []byte {
			b = b[:profileHeader]
			for _, step := range s {
				b = binary.AppendVarint(b, step)
			}
			return b
		})
	}
	for _, c := range []struct {
		name string
		file []byte
		want fault.Class
	}{
		{"empty", nil, fault.Corrupt},
		{"magic", edit(func(b []byte) []byte { b[0] ^= 1; return b }), fault.Corrupt},
		{"version", edit(func(b []byte) []byte { b[11] = 2; return b }), fault.Unsupported},
		{"half a header", good[:30], fault.Corrupt},
		{"last byte gone", good[:len(good)-1], fault.Corrupt},
		{"checksum", append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1), fault.Corrupt},
		{"another image", other, fault.Corrupt},
		{"chunk size", edit(func(b []byte) []byte { b[15] = 1; return b }), fault.Corrupt},
		{"beyond the end", steps(10), fault.Corrupt},
		{"before the start", steps(-1), fault.Corrupt},
		{"far", steps(5, math.MaxInt64), fault.Corrupt},
		{"far back", steps(5, math.MinInt64), fault.Corrupt},
		{"twice", steps(5, -1), fault.Corrupt},
		{"half a step", edit(func(b []byte) []byte { return append(b, 0x80) }), fault.Corrupt},
		{"long step", edit(func(b []byte) []byte { return append(b, 0x80, 0) }), fault.Corrupt},
	} {
		if got, err := UnmarshalProfile(c.file, x); !fault.Is(err, c.want) {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
	for _, c := range []int{-1, 10} {
		if _, err := MarshalProfile(x, []int{c}); !fault.Is(err, fault.Invalid) {
			t.Errorf("chunk %d: %v", c, err)
		}
	}
}

func FuzzProfile(f *testing.F) {
	x := profiled(f, 10)
	b, _ := MarshalProfile(x, []int{3, 4, 1})
	f.Add(b[profileHeader : len(b)-4])
	f.Fuzz(func(t *testing.T, steps []byte) {
		b := append(bytes.Clone(b[:profileHeader]), steps...)
		b = binary.BigEndian.AppendUint32(b, profileSum(b))
		chunks, err := UnmarshalProfile(b, x)
		if err != nil {
			return
		}
		if again, err := MarshalProfile(x, chunks); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted what it would write otherwise: %v, %v", chunks, err)
		}
	})
}

func FuzzProfileFile(f *testing.F) {
	x := profiled(f, 10)
	b, _ := MarshalProfile(x, []int{3, 4, 1})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		chunks, err := UnmarshalProfile(b, x)
		if again, _ := MarshalProfile(x, chunks); err == nil && !bytes.Equal(again, b) {
			t.Fatalf("accepted what it would write otherwise: %v", chunks)
		}
	})
}
