package proof

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/disk/cache"
)

// scenario runs one in a bubble of its own.
func scenario(t *testing.T, tools *Tools, seed uint64, s Subject) (result Result, err error) {
	t.Helper()
	// Time in the bubble is not time: one that hangs is told apart by the real clock.
	watch := time.AfterFunc(5*time.Minute, func() { panic(fmt.Sprintf("%s %s hangs: HAYLOFT_PROOF_SEED=%d", s.Name, s.Mode, seed)) })
	defer watch.Stop()
	defer func() {
		if r := recover(); r != nil { // goroutines that are left, or wait for ever
			panic(fmt.Sprintf("%s %s: %v: HAYLOFT_PROOF_SEED=%d", s.Name, s.Mode, r, seed))
		}
	}()
	synctest.Test(t, func(*testing.T) { result, err = RunWith(tools, seed, s) })
	return result, err
}

func TestWhatIsRightPasses(t *testing.T) {
	for _, mode := range []cache.Mode{cache.Around, cache.Through, cache.Back, cache.Offline} {
		t.Run(string(mode), func(t *testing.T) {
			points, tools := 0, NewTools()
			for seed := range uint64(100) {
				r, err := scenario(t, tools, seed, Subject{Name: "naive", Mode: mode, Volume: openNaive("")})
				if err != nil {
					t.Fatal(err)
				}
				points += r.Points
			}
			t.Logf("%d crash points", points)
		})
	}
}

// seeds are tried before a defect counts as one that is not caught. Those who act at once in a scenario come in an order of their
// own on a busy machine, so a seed that catches one mostly does so, and the next that does may be hundreds away.
const seeds = 10_000

func TestWhatIsWrongIsCaught(t *testing.T) {
	around, through, back, offline := cache.Around, cache.Through, cache.Back, cache.Offline
	for _, c := range []struct {
		defect string
		modes  []cache.Mode
		// rare ones: where to begin, so that it does not take long
		from uint64
	}{
		{"acknowledges before the source has it", []cache.Mode{through}, 0},
		{"keeps what a write covers", []cache.Mode{around}, 0},
		{"believes its map after a crash", []cache.Mode{around, through}, 0},
		{"ignores trims", []cache.Mode{around, through, back, offline}, 0},
		{"ignores FUA", []cache.Mode{around, through, back, offline}, 0},
		{"does not sync on flush", []cache.Mode{around, through, back, offline}, 0},
		{"calls all zeros", []cache.Mode{through}, 0},
		{"goes on when the image is another's", []cache.Mode{offline}, 0},
		{"does not sync names", []cache.Mode{back}, 0},
		{"sets no mark", []cache.Mode{back, offline}, 0},
		{"clears the mark too early", []cache.Mode{back, offline}, 0},
		{"does not sync the source", []cache.Mode{offline}, 0},
		{"goes on with the last epoch", []cache.Mode{back}, 410},
		{"goes on after a failed sync", []cache.Mode{back}, 920},
		{"keeps writes in memory", []cache.Mode{back}, 0},
		{"believes torn records", []cache.Mode{back}, 0},
		{"does not sync the log", []cache.Mode{back}, 0},
		{"drains the newest first", []cache.Mode{back}, 0},
		{"drains epochs together", []cache.Mode{back}, 0},
		{"forgets the log before the source is durable", []cache.Mode{back}, 0},
		{"loaded before it is durable", []cache.Mode{offline}, 0},
		{"forgets what is dirty", []cache.Mode{offline}, 0},
		{"discards what is not drained", []cache.Mode{back, offline}, 0},
	} {
		for _, mode := range c.modes {
			t.Run(string(mode)+" "+c.defect, func(t *testing.T) {
				tools := NewTools()
				for seed := c.from; seed < c.from+seeds; seed++ {
					if _, err := scenario(t, tools, seed, Subject{Name: "naive", Mode: mode, Volume: openNaive(c.defect)}); err != nil {
						t.Logf("caught by seed %d: %s", seed, err.(*Violation).What)
						return
					}
				}
				t.Fatal("not caught")
			})
		}
	}
}

func TestARightBasePasses(t *testing.T) {
	tools := NewTools()
	for seed := range uint64(100) {
		if _, err := scenario(t, tools, seed, Subject{Name: "naive base", Base: openNaiveBase("")}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAWrongBaseIsCaught(t *testing.T) {
	for _, defect := range []string{
		"does not verify", "takes what is short for whole", "believes donors", "sets bits before data is durable",
		"punches before the bit is durably gone", "keeps more than its capacity", "complete before it is durable",
		"completed before the mark is durable", "does not sync", "fetches again", "calls all zeros", "meets chunks again",
	} {
		t.Run(defect, func(t *testing.T) {
			tools := NewTools()
			for seed := range uint64(seeds) {
				if _, err := scenario(t, tools, seed, Subject{Name: "naive base", Base: openNaiveBase(defect)}); err != nil {
					t.Logf("caught by seed %d: %s", seed, err.(*Violation).What)
					return
				}
			}
			t.Fatal("not caught")
		})
	}
}
