// Package tsc measures the rate of the processor's time stamp counter, which a guest emulated by TCG sees
// unchanged.
package tsc

import (
	"errors"
	"time"
)

// ErrNone says that this processor has no such counter.
var ErrNone = errors.New("no time stamp counter on this processor")

const (
	interval = 20 * time.Millisecond
	attempts = 5
)

// KHz measures for 20 ms; the result is good to about one part in ten thousand. Of two readings the clock is
// read in between, and an attempt that was interrupted there is not used.
func KHz() (uint64, error) {
	if !available {
		return 0, ErrNone
	}
	best, width := uint64(0), ^uint64(0)
	for range attempts {
		ticks, start, slack := reading()
		time.Sleep(interval / attempts)
		ticksEnd, end, slackEnd := reading()
		if w := slack + slackEnd; w < width {
			best, width = uint64(float64(ticksEnd-ticks)/float64(end.Sub(start))*1e6), w
		}
	}
	return best, nil
}

// reading pairs the counter with the clock; slack is how many ticks went by meanwhile.
func reading() (ticks uint64, at time.Time, slack uint64) {
	before := read()
	at = time.Now()
	slack = read() - before
	return before + slack/2, at, slack
}
