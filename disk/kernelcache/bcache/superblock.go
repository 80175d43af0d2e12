package bcache

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"hayloft/disk/cache"
)

const (
	superblockAt   = 4 << 10 // bytes into either device
	superblockSize = 208     // bytes of it, with no journal in it yet
	dataOffset     = 16      // sectors before the data of a backing device: the kernel's default
	// The kernel allocates by the bucket, and wants more than 512 of them.
	leastBuckets   = 520
	smallestBucket = 32 << 10
	largestBucket  = 512 << 10
)

// superblock is struct cache_sb_disk of the kernel's include/uapi/linux/bcache.h (drivers/md/bcache/bcache_ondisk.h), without
// features. It is written here and not by make-bcache, which refuses devices on which it takes something for a partition table.
type superblock struct {
	uuid, set string // hexadecimal, 32 digits
	label     string
	block     int64 // bytes
	// Backing device: mode; its state is "clean", so the kernel does not run it without its cache.
	backing bool
	mode    cache.Mode
	// Cache device.
	bucket, buckets int64
}

// bucketFor is the size of buckets for so many bytes of cache.
func bucketFor(size int64) int64 {
	bucket := int64(largestBucket)
	for bucket > smallestBucket && size/bucket < leastBuckets {
		bucket /= 2
	}
	return bucket
}

var superblockMagic = []byte{0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81}

func (b superblock) encode() ([]byte, error) {
	uuid, err := hex.DecodeString(b.uuid)
	if err != nil {
		return nil, err
	}
	set, err := hex.DecodeString(b.set)
	if err != nil {
		return nil, err
	}
	p := make([]byte, superblockSize)
	little := binary.LittleEndian
	little.PutUint64(p[8:], superblockAt/512)
	copy(p[24:40], superblockMagic)
	copy(p[40:56], uuid)
	copy(p[56:72], set)
	copy(p[72:104], b.label)
	little.PutUint16(p[192:], uint16(b.block/512))
	if b.backing {
		const clean = 1 << 61
		little.PutUint64(p[16:], 1) // version: backing device
		little.PutUint64(p[104:], clean|modeNumbers[b.mode])
		little.PutUint64(p[184:], dataOffset)
	} else {
		little.PutUint64(p[184:], uint64(b.buckets))
		little.PutUint16(p[194:], uint16(b.bucket/512))
		little.PutUint16(p[196:], 1) // devices in the set
		little.PutUint16(p[204:], 1) // first bucket, behind the superblock
	}
	little.PutUint64(p, checksum(p[8:]))
	return p, nil
}

// checksum is the kernel's crc64_be (ECMA-182) as bcache uses it, which Go's hash/crc64 has only the other way round.
func checksum(p []byte) uint64 {
	crc := ^uint64(0)
	for _, c := range p {
		crc ^= uint64(c) << 56
		for range 8 {
			carry := crc>>63 != 0
			crc <<= 1
			if carry {
				crc ^= 0x42f0e1eba9ea3693
			}
		}
	}
	return ^crc
}

// newUUID gives 32 hexadecimal digits.
func newUUID() string {
	var p [16]byte
	_, _ = rand.Read(p[:]) // never fails
	p[6], p[8] = p[6]&0x0f|0x40, p[8]&0x3f|0x80
	return hex.EncodeToString(p[:])
}

// dashed is how the kernel names a set.
func dashed(uuid string) string {
	if len(uuid) != 32 {
		return uuid
	}
	return fmt.Sprintf("%s-%s-%s-%s-%s", uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])
}
