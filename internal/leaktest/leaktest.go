// Package leaktest fails tests that leave goroutines. It is goleak with patience: goleak gives goroutines that have been told to
// end half a second for it, which they may not be given on a machine with much else to do.
package leaktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const patience = 2 * time.Minute

// Main runs a package's tests, and ends the process; call it from TestMain.
func Main(m *testing.M, options ...goleak.Option) {
	status := m.Run()
	if status == 0 {
		if err := Find(options...); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			status = 1
		}
	}
	os.Exit(status)
}

// Find gives goroutines time to end, and says which ones do not.
func Find(options ...goleak.Option) error { return find(patience, options) }

func find(limit time.Duration, options []goleak.Option) error {
	for began := time.Now(); ; {
		err := goleak.Find(options...)
		if err == nil || time.Since(began) > limit {
			return err
		}
	}
}
