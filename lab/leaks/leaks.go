// Package leaks finds goroutines that tests leave behind, with patience: goleak by itself gives those that are about to
// end less than half a second, which they may not have on a busy machine.
package leaks

import (
	"time"

	"go.uber.org/goleak"
)

// patience is how long what is ending may take to end; only a leak takes that long.
const patience = 2 * time.Minute

// Find returns an error that names the goroutines which do not end.
func Find(options ...goleak.Option) (err error) {
	for limit := time.Now().Add(patience); ; {
		if err = goleak.Find(options...); err == nil || time.Now().After(limit) {
			return err
		}
	}
}

// VerifyNone fails the test when goroutines are left that do not end.
func VerifyNone(t goleak.TestingT, options ...goleak.Option) {
	if err := Find(options...); err != nil {
		t.Error(err)
	}
}

// Patient runs the tests of a package and returns when nothing of them runs any more, or it does not end. It is for
// goleak, which says what that is:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(leaks.Patient(m)) }
func Patient(m goleak.TestingM, options ...goleak.Option) goleak.TestingM {
	return patient{m, options}
}

type patient struct {
	goleak.TestingM
	options []goleak.Option
}

func (p patient) Run() int {
	status := p.TestingM.Run()
	if status == 0 {
		_ = Find(p.options...) // goleak finds and tells what is left then
	}
	return status
}
