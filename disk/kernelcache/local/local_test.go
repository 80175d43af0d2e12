package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
)

func TestHeader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); !errors.Is(err, ErrBlank) {
		t.Errorf("empty: %v", err)
	}
	h := Header{Driver: "x", Instance: "y", Name: "1.0", Mode: cache.Back, Source: 4096, Block: 512}
	if err := Write(path, h); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || got != h || !got.Continues() {
		t.Errorf("%+v, %v", got, err)
	}
	if err := WriteAt(path, 100, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if err := WriteAt(path, 0, []byte("XFSB")); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); !fault.Is(err, fault.Busy) {
		t.Errorf("foreign: %v", err)
	}
	if _, err := Size(path); !fault.Is(err, fault.Invalid) {
		t.Errorf("size of a file: %v", err)
	}
}

func TestCheckSpec(t *testing.T) {
	modes := []cache.Mode{cache.Through}
	good := kernelcache.Spec{Name: "12.0", Source: "/dev/a", Local: "/dev/b", Mode: cache.Through}
	if err := CheckSpec(good, modes); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", ".", "-x", "a/b", "a b", "A", strings.Repeat("a", 61)} {
		bad := good
		bad.Name = name
		if err := CheckSpec(bad, modes); !fault.Is(err, fault.Invalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	bad := good
	bad.Mode = cache.Back
	if err := CheckSpec(bad, modes); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "BACK") {
		t.Error(err)
	}
}

func TestUntilClean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			says []int64
			want fault.Class
		}{"falls": {[]int64{5, 9, 4, 0}, -1}, "stands": {[]int64{5}, fault.Unavailable}} {
			asked, done, total := 0, int64(0), int64(0)
			err := UntilClean(t.Context(), time.Millisecond, 30*time.Millisecond, func(d, of int64) { done, total = d, of }, func() (int64, error) {
				n := c.says[min(asked, len(c.says)-1)]
				asked++
				return n, nil
			})
			if c.want < 0 && (err != nil || done != 9 || total != 9) || c.want >= 0 && !fault.Is(err, c.want) {
				t.Errorf("%s: %v, %d of %d", name, err, done, total)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := UntilClean(ctx, time.Hour, time.Hour, func(int64, int64) {}, func() (int64, error) { return 1, nil }); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
