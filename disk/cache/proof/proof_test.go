package proof

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/disk/cache"
	"hayloft/disk/cache/base"
	"hayloft/disk/cache/volume"
)

// subjects are the caches as they are used.
var subjects = []Subject{
	{Name: "base", Base: base.Open},
	{Name: "volume", Mode: cache.Around, Volume: volume.Open},
	{Name: "volume", Mode: cache.Through, Volume: volume.Open},
	{Name: "volume", Mode: cache.Back, Volume: volume.Open},
	{Name: "volume", Mode: cache.Offline, Volume: volume.Open},
	{Name: "volume", Volume: volume.Open},
}

// number from the environment, 0 when it is not there.
func number(t *testing.T, name string) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestCrashPoints crashes the caches at random changes of disk or repository: 1,000 times; 20,000 times in make test,
// HAYLOFT_CRASH_POINTS times (a million in make crash); with HAYLOFT_PROOF_SEED just the scenario of that seed.
func TestCrashPoints(t *testing.T) {
	points, start := uint64(1000), uint64(0)
	if os.Getenv("HAYLOFT_LAB") == "1" && !testing.Short() {
		points = 20_000
	}
	if n := number(t, "HAYLOFT_CRASH_POINTS"); n > 0 {
		points = n
	}
	only := os.Getenv("HAYLOFT_PROOF_SEED") != ""
	if only {
		start = number(t, "HAYLOFT_PROOF_SEED")
	} else if points > 1000 {
		start = rand.Uint64N(1 << 40)
	}
	each := int64(points) / int64(len(subjects))

	var total, scenarios atomic.Int64
	began := time.Now()
	report := time.NewTicker(10 * time.Second)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-report.C:
				fmt.Fprintf(os.Stderr, "%d crash points in %v\n", total.Load(), time.Since(began).Round(time.Second))
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() {
		report.Stop()
		close(done)
		t.Logf("%d crash points in %d scenarios from seed %d on, %v", total.Load(), scenarios.Load(), start, time.Since(began).Round(time.Millisecond))
	})
	for i, s := range subjects {
		t.Run(s.Name+" "+cmp.Or(string(s.Mode), "any"), func(t *testing.T) {
			t.Parallel()
			here, tools := int64(0), NewTools()
			for seed := start; here < each; seed++ {
				// A seed is one scenario of each subject.
				r, err := scenario(t, tools, seed, subjects[i])
				here += int64(r.Points)
				total.Add(int64(r.Points))
				scenarios.Add(1)
				if err != nil {
					t.Fatal(err)
				}
				if only {
					return
				}
			}
		})
	}
}
