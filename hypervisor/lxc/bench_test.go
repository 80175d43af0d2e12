package lxc

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

// BenchmarkHundred starts a hundred containers with a NIC each at once: HAYLOFT_LAB=1 go test -bench Hundred
// -benchtime 1x. Besides the time it reports what a monitor takes, all pages and its share of shared ones.
func BenchmarkHundred(b *testing.B) {
	d := newDriver(b, b.TempDir())
	defer d.Close()
	lower := userland(b)
	for b.Loop() {
		var group sync.WaitGroup
		for id := range 100 {
			m := plugged(guest(b, lower, 7000+id))
			group.Go(func() {
				if err := d.Start(b.Context(), m); err != nil {
					b.Error(err)
				}
			})
		}
		group.Wait()
		b.StopTimer()
		var all, own int64
		domains, err := d.List(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for _, domain := range domains {
			all += resident(domain.PID)
			own += proportional(b, domain.PID)
		}
		b.ReportMetric(float64(all)/float64(len(domains))/1e6, "MB-RSS/monitor")
		b.ReportMetric(float64(own)/float64(len(domains))/1e6, "MB-PSS/monitor")
		for _, domain := range domains {
			group.Go(func() {
				if err := d.Remove(b.Context(), domain.ID); err != nil {
					b.Error(err)
				}
			})
		}
		group.Wait()
		b.StartTimer()
	}
}

func proportional(b *testing.B, pid int) int64 {
	text, err := os.ReadFile("/proc/" + itoa(pid) + "/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	var kilobytes int64
	_, rest, _ := strings.Cut(string(text), "\nPss:")
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		b.Fatal(err)
	}
	return kilobytes << 10
}
