package fleet

import (
	"cmp"
	"slices"
	"time"
)

// Stage is one part of the way from submission to the first answer.
type Stage struct {
	Name     string
	P50, P99 time.Duration
}

// Stages summarises machines that have answered, in the order of the stages; the last is the whole way.
func Stages(machines []Machine) []Stage {
	names := []string{"scheduling", "waiting", "PROLOG", "BOOT", "first SSH answer", "all"}
	took := make([][]time.Duration, len(names))
	for _, m := range machines {
		t := m.Timing
		if m.Answered.IsZero() || t.BootEnd == 0 {
			continue
		}
		end := m.Answered.UnixNano()
		for i, d := range []int64{t.Scheduled - t.Submitted, t.PrologStart - t.Scheduled, t.PrologEnd - t.PrologStart,
			t.BootEnd - t.PrologEnd, end - t.BootEnd, end - t.Submitted} {
			took[i] = append(took[i], time.Duration(d))
		}
	}
	var stages []Stage
	for i, name := range names {
		stages = append(stages, Stage{name, Percentile(took[i], 50), Percentile(took[i], 99)})
	}
	return stages
}

// Percentile is the smallest value that p percent of the values do not exceed (nearest rank); 0 of none.
func Percentile[T cmp.Ordered](values []T, p int) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(rank, 1)-1]
}
