package fastcopy

import (
	"sync"
	"time"
)

// Progress of a copy.
type Progress struct {
	// Done of Total bytes: with an index and a target of zeros those that are data, otherwise the whole image.
	Done, Total int64
	// Rate in bytes a second, lately.
	Rate float64
}

const (
	reportEvery = 200 * time.Millisecond
	// rateSpan is how far back the rate looks.
	rateSpan = 3 * time.Second
)

// meter counts, and reports now and then.
type meter struct {
	report func(Progress)
	total  int64

	mu      sync.Mutex
	done    int64
	last    time.Time
	samples []sample // of rateSpan, oldest first
}

type sample struct {
	at   time.Time
	done int64
}

func newMeter(report func(Progress), total int64) *meter {
	now := time.Now()
	return &meter{report: report, total: total, last: now, samples: []sample{{now, 0}}}
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	if now := time.Now(); now.Sub(m.last) >= reportEvery {
		m.tell(now)
	}
}

// end reports that all is done.
func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tell(time.Now())
}

func (m *meter) tell(now time.Time) {
	m.last = now
	for len(m.samples) > 1 && now.Sub(m.samples[0].at) > rateSpan {
		m.samples = m.samples[1:]
	}
	rate := 0.0
	if span := now.Sub(m.samples[0].at).Seconds(); span > 0 {
		rate = float64(m.done-m.samples[0].done) / span
	}
	m.samples = append(m.samples, sample{now, m.done})
	if m.report != nil {
		m.report(Progress{Done: m.done, Total: m.total, Rate: rate})
	}
}
