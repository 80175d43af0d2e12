package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/image"
)

const chunk = image.ChunkSize

// sizes of the immutable images: of less than a chunk, of whole chunks, and with a short last one.
var sizes = []int{24 << 20, 40<<20 + 1000, 12 << 20, 100_000, 32<<20 + 511, 8 << 20}

// sharedChunks are in several images, also several times in one.
const sharedChunks = 48

// fillChunk writes bytes that another id does not have.
func fillChunk(p []byte, id uint64) {
	r := rand.NewPCG(id, 0x50a4)
	var word [8]byte
	for len(p) > 0 {
		binary.LittleEndian.PutUint64(word[:], r.Uint64())
		p = p[copy(p, word[:]):]
	}
}

// content is an image: a third of its chunks others have too, a fifth are zeros.
func content(r *rand.Rand, number, size int) []byte {
	b := make([]byte, size)
	for i := 0; i*chunk < size; i++ {
		p := b[i*chunk : min((i+1)*chunk, size)]
		switch n := r.IntN(15); {
		case n < 3:
		case n < 8:
			fillChunk(p, uint64(r.IntN(sharedChunks)))
		default:
			fillChunk(p, uint64(1+number)<<32|uint64(i))
		}
	}
	return b
}

// publish puts an image into the repository, with its index.
func publish(ctx context.Context, in disk.Repository, repo repository.Repository, id int, name string, b []byte) (disk.Image, error) {
	w, err := repo.Create(ctx, name)
	if err != nil {
		return disk.Image{}, err
	}
	if err := w.SetSize(int64(len(b))); err != nil {
		return disk.Image{}, err
	}
	index, _, err := image.Scan(ctx, w, bytes.NewReader(b), int64(len(b)), nil)
	if err == nil {
		err = image.Publish(ctx, repo, name, w, index)
	}
	if err != nil {
		return disk.Image{}, err
	}
	return disk.Image{ID: id, Name: name, Repository: in, Source: name, Format: "raw", Digest: index.Digest(), Size: int64(len(b))}, nil
}

// differ says where got is not want, which is at offset; nil when it is.
func differ(got, want []byte, offset int64) error {
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes at %d instead of %d", len(got), offset, len(want))
	}
	first, last := -1, 0
	for i := range got {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	at := offset + int64(first)
	some := func(b []byte) []byte { return b[first:min(first+16, len(b))] }
	return fmt.Errorf("%d bytes at %d differ, from byte %d (chunk %d, %d in it) to %d: %x instead of %x", len(got), offset, at, at/chunk, at%chunk,
		offset+int64(last), some(got), some(want))
}
