package base

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"hayloft/disk/cache/storage/faulty"
	"hayloft/image"
)

func mapOf(t interface{ Fatal(...any) }, chunks int) (*presence, *image.Index) {
	x, err := image.NewIndex(int64(chunks)*chunk-1, chunk)
	if err != nil {
		t.Fatal(err)
	}
	header, err := mapHeader(x)
	if err != nil {
		t.Fatal(err)
	}
	return newPresence(header, chunks), x
}

// reload writes the map and reads the file, after spoil had it.
func reload(t interface{ Fatal(...any) }, m *presence, spoil func(file []byte) []byte) (*presence, int, error) {
	disk := faulty.New(1)
	f, _ := disk.Create("present")
	if err := m.create(f); err != nil {
		t.Fatal(err)
	}
	for block := range m.blocks() {
		m.dirty[block] = struct{}{}
	}
	if err := m.write(); err != nil {
		t.Fatal(err)
	}
	size, _ := f.Size()
	file := make([]byte, size)
	if _, err := f.ReadAt(file, 0); err != nil {
		t.Fatal(err)
	}
	file = spoil(file)
	g, _ := disk.Create("spoilt")
	if _, err := g.WriteAt(file, 0); err != nil {
		t.Fatal(err)
	}
	n := newPresence(m.header, m.chunks)
	lost, err := n.load(g)
	return n, lost, err
}

func TestPresenceRoundTripAndRot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunks := rapid.IntRange(1, 3*blockWords*64).Draw(t, "chunks")
		m, _ := mapOf(t, chunks)
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, chunks-1), 0, 200).Draw(t, "set") {
			m.set(i)
		}
		n, lost, err := reload(t, m, func(f []byte) []byte { return f })
		if err != nil || lost != 0 {
			t.Fatalf("lost %d blocks: %v", lost, err)
		}
		if !slices.Equal(n.saved, m.saved) {
			t.Fatal("other chunks than before")
		}
		// One wrong bit costs at most the bits of its block.
		at := rapid.IntRange(0, (m.blocks()+1)*blockSize-1).Draw(t, "rot")
		n, lost, err = reload(t, m, func(f []byte) []byte { f[at] ^= 1 << (at % 8); return f })
		if at < blockSize {
			if err == nil {
				t.Fatal("a damaged header was taken")
			}
			return
		}
		block := at/blockSize - 1
		if err != nil || lost != 1 {
			t.Fatalf("lost %d blocks: %v", lost, err)
		}
		clear(m.words(block))
		if !slices.Equal(n.saved, m.saved) {
			t.Fatal("a damaged block costs or claims more than itself")
		}
	})
}

func TestPresenceOfAnotherImageOrPlaceClaimsNothing(t *testing.T) {
	chunks := 2 * blockWords * 64
	m, x := mapOf(t, chunks)
	m.set(5)
	n, lost, err := reload(t, m, func(f []byte) []byte { // block 0 in the place of block 1
		copy(f[2*blockSize:], f[blockSize:2*blockSize])
		return f
	})
	if err != nil || lost != 1 || n.has(5+blockWords*64) || !n.has(5) {
		t.Fatalf("lost %d: %v", lost, err)
	}
	data := make([]byte, x.Length())
	data[7] = 1
	other, err := mapHeader(indexOf(t, data))
	if err != nil {
		t.Fatal(err)
	}
	n = newPresence(other, chunks)
	block := make([]byte, blockSize)
	m.encode(0, block)
	if n.decode(0, block) || n.has(5) {
		t.Fatal("a block of another image was taken")
	}
	if _, _, err := reload(t, m, func(f []byte) []byte { copy(f, other); return f }); err == nil {
		t.Fatal("the header of another image was taken")
	}
	for _, short := range []int{0, 100, blockSize, blockSize + 7, 2*blockSize - 1} {
		n, _, err := reload(t, m, func(f []byte) []byte { return f[:short] })
		if (err == nil) != (short >= blockSize) || n.has(5) {
			t.Fatalf("cut to %d: %v, claims %v", short, err, n.has(5))
		}
	}
}

func FuzzPresence(f *testing.F) {
	m, _ := mapOf(f, blockWords*64+70)
	m.set(0)
	m.set(blockWords*64 + 69)
	for i := range m.blocks() {
		block := make([]byte, blockSize)
		m.encode(i, block)
		f.Add(block, i)
	}
	f.Add(make([]byte, blockSize), 1)
	f.Fuzz(func(t *testing.T, block []byte, at int) {
		if len(block) != blockSize {
			return
		}
		n, _ := mapOf(t, blockWords*64+70)
		at = min(max(at, 0), n.blocks()-1)
		ok := n.decode(at, block)
		again := make([]byte, blockSize)
		n.encode(at, again)
		claims := false
		for i := range n.chunks {
			claims = claims || n.has(i)
		}
		if claims && (!ok || !bytes.Equal(again[4:], block[4:]) || !bytes.Equal(again[:4], block[:4])) {
			t.Fatal("claims chunks that it would not write so")
		}
	})
}
