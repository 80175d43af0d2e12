package proof

import (
	"github.com/zeebo/blake3"

	"hayloft/image"
)

// indexOf is the chunk index of an image, with chunks of another size than those of package image, small enough for
// images that are.
func indexOf(content []byte, chunk int) (*image.Index, error) {
	zero, err := image.NewIndex(int64(len(content)), chunk)
	if err != nil {
		return nil, err
	}
	file := zero.Marshal()
	digests := file[len(file)-(zero.Chunks()+1)*image.DigestSize:]
	for i := range zero.Chunks() {
		offset, length := zero.Range(i)
		sum := blake3.Sum256(content[offset : offset+int64(length)])
		copy(digests[i*image.DigestSize:], sum[:])
	}
	sum := blake3.Sum256(file[:len(file)-image.DigestSize])
	copy(file[len(file)-image.DigestSize:], sum[:])
	return image.UnmarshalIndex(file)
}
