package attempt

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud/fault"
)

func TestRetry(t *testing.T) {
	flaky := &Transient{Err: errors.New("flaky")}
	slow := &Transient{Err: errors.New("slow"), After: time.Hour}
	wrong := fault.Errorf(fault.Permission, "wrong")
	p := Patience{Attempts: 3, First: time.Second, Longest: 4 * time.Second}
	for _, row := range []struct {
		name   string
		errs   []error
		bytes  int
		class  fault.Class
		ok     bool
		calls  int
		least  time.Duration
		within time.Duration
	}{
		{"at once", []error{nil}, 0, 0, true, 1, 0, 0},
		{"at last", []error{flaky, flaky, nil}, 0, 0, true, 3, 3 * time.Second, 4 * time.Second},
		{"never", []error{flaky, flaky, flaky}, 0, fault.Unavailable, false, 3, 3 * time.Second, 4 * time.Second},
		{"not by trying", []error{flaky, wrong}, 0, fault.Permission, false, 2, time.Second, 2 * time.Second},
		{"it goes on", []error{flaky, flaky, flaky, flaky, flaky, nil}, progress, 0, true, 6, 5 * time.Second, 8 * time.Second},
		{"asked to wait", []error{slow, nil}, 0, 0, true, 2, 4 * time.Second, 5 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			began := time.Now()
			err := Retry(t.Context(), p, func() (int, error) { calls++; return row.bytes, row.errs[calls-1] })
			took := time.Since(began)
			if (err == nil) != row.ok || !row.ok && !fault.Is(err, row.class) || calls != row.calls || took < row.least || took > row.within {
				t.Errorf("%s: %v after %d calls and %v", row.name, err, calls, took)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := Retry(ctx, p, func() (int, error) { return 0, flaky }); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, flaky.Err) {
			t.Error(err)
		}
	})
}
