package dmcache

import (
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache/local"
)

func TestParseStatus(t *testing.T) {
	const line = "0 204800 cache 8 27/1024 128 14/800 12 34 5 6 0 14 3 2 metadata2 writeback 2 migration_threshold 2048 smq 0 rw -"
	s, err := parseStatus(line)
	if err != nil || s.Mode != cache.Back || s.Cached != 14*64<<10 || s.Dirty != 3*64<<10 || s.Size != 800*64<<10 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "0 8 linear", "0 204800 cache 8 27/1024 x 14/800 1 2 3 4 5 6 7 2 a b", "0 1 cache Fail",
		"0 204800 cache 8 27/1024 128 14/800 12 34 5 6 0 14 3 900 metadata2",
		line + " needs_check"} {
		if _, err := parseStatus(bad); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestLayout(t *testing.T) {
	for _, size := range []int64{8 << 20, 64 << 20, 1 << 30, 10 << 40} {
		h, err := (kernel{}).Layout(size - local.Space)
		if err != nil {
			t.Errorf("%d: %v", size, err)
			continue
		}
		if local.Space+h.Metadata+h.Data > size || h.Data%h.Block != 0 || h.Data/h.Block > 2*maxBlocks || h.Metadata < 4<<20 {
			t.Errorf("%d: %+v", size, h)
		}
	}
	if _, err := (kernel{}).Layout(5<<20 - local.Space); !fault.Is(err, fault.OutOfSpace) {
		t.Error(err)
	}
}
