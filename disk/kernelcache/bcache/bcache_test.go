package bcache

import (
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "512": 512, "0.0k": 0, "4.0k": 4096, "1.5M": 3 << 19, "2.0G": 2 << 30} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "k", "-1k", "1kk", "x", "1.5Q", "NaN"} {
		if got, err := parseSize(text); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestParseOthers(t *testing.T) {
	if got, err := parseUsed("Unused:\t\t87%\nClean:\t\t10%\nDirty:\t\t1%\nMetadata:\t2%\nAverage:\t3\n"); err != nil || got != 11 {
		t.Errorf("%d, %v", got, err)
	}
	if got, err := modeOf("writethrough [writeback] writearound none"); err != nil || got != cache.Back {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := modeOf("writethrough writeback writearound [none]"); !fault.Is(err, fault.Corrupt) {
		t.Error(err)
	}
}

func TestSuperblock(t *testing.T) {
	if got := checksum([]byte("123456789")); got != 0x62ec59e3f1a4f00a { // CRC-64/WE's own check
		t.Errorf("checksum %x", got)
	}
	p, err := superblock{uuid: newUUID(), set: newUUID(), label: "x-1.0", block: 512, backing: true, mode: cache.Back}.encode()
	if err != nil || len(p) != superblockSize || p[8] != 8 || p[16] != 1 || string(p[72:77]) != "x-1.0" || p[104] != 1 || p[111] != 0x20 {
		t.Errorf("%x, %v", p, err)
	}
	if _, err := (superblock{uuid: "x"}).encode(); err == nil {
		t.Error("a uuid that is none")
	}
}

func TestBucketFor(t *testing.T) {
	for size, want := range map[int64]int64{62 << 20: 64 << 10, 1 << 30: 512 << 10, 1 << 40: 512 << 10, 17 << 20: 32 << 10} {
		if got := bucketFor(size); got != want || size/got < leastBuckets {
			t.Errorf("%d bytes have buckets of %d, want %d", size, got, want)
		}
	}
}
