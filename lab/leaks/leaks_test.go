package leaks

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

type tests func() int

func (run tests) Run() int { return run() }

// TestEndsInItsOwnTime: what takes longer to end than goleak waits is no leak.
func TestEndsInItsOwnTime(t *testing.T) {
	before := goleak.IgnoreCurrent()
	leaving := func() int {
		go func() { time.Sleep(time.Second) }()
		return 0
	}
	if status := Patient(tests(leaving), before).Run(); status != 0 {
		t.Errorf("status %d", status)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
	stays := make(chan struct{})
	go func() { <-stays }()
	if status := Patient(tests(func() int { return 3 }), before).Run(); status != 3 {
		t.Errorf("status %d of tests that failed", status)
	}
	if goleak.Find(before) == nil {
		t.Error("a goroutine that stays is not seen")
	}
	close(stays)
	VerifyNone(t, before)
}
