package local

import (
	"context"
	"time"

	"hayloft/cloud/fault"
)

// UntilClean asks again and again how many bytes are dirty, reports, and returns when none are. When they get no fewer for the
// time of patience, it is fault.Unavailable.
func UntilClean(ctx context.Context, every, patience time.Duration, report func(done, total int64), dirty func() (int64, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var total, done int64
	least, since := int64(-1), time.Now()
	for {
		now, err := dirty()
		if err != nil {
			return err
		}
		total = max(total, now)
		done = max(done, total-now)
		report(done, total)
		if now == 0 {
			return nil
		}
		if least < 0 || now < least {
			least, since = now, time.Now()
		}
		if time.Since(since) > patience {
			return fault.Errorf(fault.Unavailable, "the source has taken nothing for %s: %d bytes are not there yet", patience, now)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
