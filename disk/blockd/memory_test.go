//go:build !race

package blockd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/lab/labtest"
)

// TestMemoryOfAHundredExports: a host full of busy machines costs little.
func TestMemoryOfAHundredExports(t *testing.T) {
	labtest.Root(t)
	const most = 64 << 20
	b := newBench(t)
	k, _ := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	ctx := context.Background()
	var paths []string
	var bases []Export
	for i := range 4 {
		bases = append(bases, b.baseExport("", b.image(i, fmt.Sprintf("base-%d", i), content(64*chunk, uint64(i)))))
	}
	for i := range 100 {
		name := fmt.Sprintf("%d.0", i)
		e := bases[i%4]
		e.Name, e.Path = name, b.export(name).Path
		if i%5 == 0 {
			img := b.image(10+i, fmt.Sprintf("mine-%d", i), content(16*chunk, uint64(10+i)))
			e = b.volumeExport(name, img, modes[i/5%len(modes)])
			e.Volume.Machine = i
		}
		must(t, k.Client().Export(ctx, e))
		paths = append(paths, e.Path)
	}
	limit, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var group sync.WaitGroup
	for i, path := range paths {
		c := dial(t, path)
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			p := make([]byte, 128<<10)
			for limit.Err() == nil {
				at := r.Int64N(c.Size()-int64(len(p))) &^ 4095
				err := c.Read(ctx, p, at)
				if err == nil && !c.ReadOnly() {
					err = c.Write(ctx, p[:32<<10], at, r.IntN(20) == 0)
				}
				if err != nil {
					t.Errorf("%s: %v", path, err)
					return
				}
			}
		})
	}
	group.Wait()
	peak, anonymous := memoryOf(t, statusOf(t, k.Client()).PID)
	t.Logf("100 exports, busy: %.1f MB at most with the program itself, %.1f MB of them data", float64(peak)/1e6, float64(anonymous)/1e6)
	if peak > most {
		t.Errorf("%d bytes of memory, more than %d", peak, most)
	}
}

// memoryOf is the most memory that a process had, in bytes, and how much is its own now: not of files.
func memoryOf(t testing.TB, pid int) (peak, anonymous int64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			peak = kb << 10
		}
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kb); err == nil {
			anonymous = kb << 10
		}
	}
	return peak, anonymous
}
