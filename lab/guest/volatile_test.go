package guest

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"hayloft/disk/export"
)

const volatileSectors = 64

// newDisk is a volatile disk full of 'a', all durable.
func newDisk(t *testing.T) *volatile {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if _, err := file.Write(bytes.Repeat([]byte{'a'}, volatileSectors*sector)); err != nil {
		t.Fatal(err)
	}
	v, err := newVolatile(file)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *volatile) fill(t *testing.T, char byte, place, n int64, fua bool) {
	t.Helper()
	if err := v.WriteAt(t.Context(), bytes.Repeat([]byte{char}, int(n*sector)), place*sector, fua); err != nil {
		t.Fatal(err)
	}
}

// letters is one character a sector, '?' for one that is torn.
func (v *volatile) letters(t *testing.T) string {
	t.Helper()
	var text []byte
	for place := range int64(volatileSectors) {
		data := make([]byte, sector)
		if err := v.ReadAt(t.Context(), data, place*sector); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, bytes.Repeat(data[:1], sector)) {
			data[0] = '?'
		}
		text = append(text, data[0])
	}
	return string(text)
}

func TestVolatileDiskLosesOnlyWhatWasNotFlushed(t *testing.T) {
	kept, lost := 0, 0
	for seed := range uint64(50) {
		v := newDisk(t)
		v.fill(t, 'b', 0, 16, false)
		if err := v.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		v.fill(t, 'c', 8, 16, false) // flushed b or c; then a or c
		v.fill(t, 'd', 32, 16, true) // d
		v.fill(t, 'e', 40, 4, false) // d or e
		v.fill(t, 'f', 8, 4, false)  // b or f: c was in the cache only
		if err := v.Zero(t.Context(), 60*sector, 4*sector, export.ZeroFlags{}); err != nil {
			t.Fatal(err)
		}
		if got := v.letters(t); got != "bbbbbbbbffffccccccccccccaaaaaaaaddddddddeeeeddddaaaaaaaaaaaa\x00\x00\x00\x00" {
			t.Fatalf("before the cut: %q", got)
		}
		dirty, n, err := v.lose(rand.New(rand.NewPCG(1, seed)))
		if err != nil || dirty != 16+4+4 {
			t.Fatalf("%d sectors not flushed, %v", dirty, err)
		}
		lost, kept = lost+n, kept+dirty-n
		got := v.letters(t)
		for place, allowed := range map[int]string{0: "b", 7: "b", 8: "bf", 11: "bf", 12: "bc", 15: "bc", 16: "ac", 23: "ac", 24: "a",
			32: "d", 39: "d", 40: "de", 43: "de", 44: "d", 59: "a", 60: "a\x00", 63: "a\x00"} {
			if !bytes.ContainsRune([]byte(allowed), rune(got[place])) {
				t.Errorf("seed %d: sector %d is %q, want one of %q", seed, place, got[place], allowed)
			}
		}
	}
	if kept == 0 || lost == 0 {
		t.Errorf("%d sectors kept and %d lost: want both", kept, lost)
	}
}
