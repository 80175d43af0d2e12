package image

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math"
	"strings"

	"hayloft/cloud/fault"
)

// ProfileSuffix ends the names of boot profiles.
const ProfileSuffix = ".profile"

// ProfileName is the name of the object that holds the boot profile of object name.
func ProfileName(name string) string { return name + ProfileSuffix }

// MaxProfileFile bounds the file of a boot profile, in bytes.
const MaxProfileFile = 8 << 20

// The file of a boot profile. Numbers are big-endian; a step is the distance of a chunk from the one that follows
// the chunk before it (the first: from chunk 0), as a signed varint of Protocol Buffers ("zigzag"), so that
// neighbours take a byte.
//
//	0 magic "HAYLBPF\n"  8 version  12 chunk size  16 image digest  48 steps  and last CRC-32C of all before it
const (
	profileMagic   = "HAYLBPF\n"
	profileVersion = 1
	profileHeader  = 16 + DigestSize
)

// MarshalProfile gives the file of a boot profile: the chunks of image x that its first boot touched, in order, each
// once. fault.Invalid for a chunk that there is not, and for a file of more than MaxProfileFile.
func MarshalProfile(x *Index, chunks []int) ([]byte, error) {
	b, err := x.profileHeader()
	if err != nil {
		return nil, err
	}
	seen := newChunkSet(x.Chunks())
	next := 0
	for _, c := range chunks {
		if c < 0 || c >= x.Chunks() {
			return nil, fault.Errorf(fault.Invalid, "boot profile: chunk %d of %d", c, x.Chunks())
		}
		if seen.add(c) {
			b = binary.AppendVarint(b, int64(c-next))
			next = c + 1
		}
	}
	b = binary.BigEndian.AppendUint32(b, profileSum(b))
	if len(b) > MaxProfileFile {
		return nil, fault.Errorf(fault.Invalid, "boot profile: %d bytes, at most %d", len(b), MaxProfileFile)
	}
	return b, nil
}

func (x *Index) profileHeader() ([]byte, error) {
	digest, err := hex.DecodeString(strings.TrimPrefix(x.Digest(), digestPrefix))
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, profileHeader)
	b = append(b, profileMagic...)
	b = binary.BigEndian.AppendUint32(b, profileVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(x.ChunkSize()))
	return append(b, digest...), nil
}

func profileSum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// UnmarshalProfile reads the file of a boot profile of image x. A profile is a hint, not verified by any digest.
// fault.Corrupt for what is damaged or of another image, fault.Unsupported for another version.
func UnmarshalProfile(b []byte, x *Index) ([]int, error) {
	if len(b) < len(profileMagic)+4 || string(b[:len(profileMagic)]) != profileMagic {
		return nil, fault.Errorf(fault.Corrupt, "boot profile: wrong magic, or truncated: %d bytes", len(b))
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != profileVersion {
		return nil, fault.Errorf(fault.Unsupported, "boot profile: version %d, this program reads %d", v, profileVersion)
	}
	if len(b) < profileHeader+4 || len(b) > MaxProfileFile {
		return nil, fault.Errorf(fault.Corrupt, "boot profile: wrong length of %d bytes", len(b))
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if profileSum(body) != sum {
		return nil, fault.Errorf(fault.Corrupt, "boot profile: checksum does not match")
	}
	if want, err := x.profileHeader(); err != nil {
		return nil, err
	} else if string(body[:profileHeader]) != string(want) {
		return nil, fault.Errorf(fault.Corrupt, "boot profile: of image %s%x instead of %s", digestPrefix, body[16:profileHeader], x.Digest())
	}
	var chunks []int
	seen := newChunkSet(x.Chunks())
	next := int64(0)
	for steps := body[profileHeader:]; len(steps) > 0; {
		step, n := binary.Varint(steps)
		// The shortest form only, so that a profile has one file.
		if n <= 0 || n > 1 && steps[n-1] == 0 || step > math.MaxInt64-next {
			return nil, fault.Errorf(fault.Corrupt, "boot profile: wrong step after chunk %d", next-1)
		}
		c := next + step
		if c < 0 || c >= int64(x.Chunks()) || !seen.add(int(c)) {
			return nil, fault.Errorf(fault.Corrupt, "boot profile: chunk %d of %d, or named twice", c, x.Chunks())
		}
		chunks, steps, next = append(chunks, int(c)), steps[n:], c+1
	}
	return chunks, nil
}

// chunkSet is a set of chunk numbers, a bit each.
type chunkSet []uint64

func newChunkSet(n int) chunkSet { return make(chunkSet, (n+63)/64) }

// add reports whether the chunk is new.
func (s chunkSet) add(i int) bool {
	bit := uint64(1) << (i & 63)
	isNew := s[i>>6]&bit == 0
	s[i>>6] |= bit
	return isNew
}
