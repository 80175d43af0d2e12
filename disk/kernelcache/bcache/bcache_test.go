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
