// Package undo keeps what must be taken back when an operation of several steps fails half-way.
package undo

import "errors"

// Stack holds undo steps. The zero value is ready. Not safe for concurrent use.
type Stack struct{ steps []func() error }

// Push adds a step that takes back what was just done.
func (s *Stack) Push(step func() error) { s.steps = append(s.steps, step) }

// Keep forgets all steps: the operation succeeded.
func (s *Stack) Keep() { s.steps = nil }

// Run takes back in reverse order, all steps even when some fail, and joins their errors. After Keep
// it does nothing, so it is usually deferred.
func (s *Stack) Run() error {
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		errs = append(errs, s.steps[i]())
	}
	s.steps = nil
	return errors.Join(errs...)
}
