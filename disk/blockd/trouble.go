package blockd

import (
	"sync/atomic"

	"hayloft/cloud/fault"
)

// trouble is why a repository could not be reached when it was last asked. Machines wait meanwhile: whoever looks after them is told
// what for. Safe for concurrent use.
type trouble struct{ last atomic.Pointer[string] }

// heard takes in how the repository was last found. What is not fault.Unavailable is an answer.
func (t *trouble) heard(err error) {
	if fault.Is(err, fault.Unavailable) {
		text := err.Error()
		t.last.Store(&text)
	} else if t.last.Load() != nil {
		t.last.Store(nil)
	}
}

// text is "" while the repository answers.
func (t *trouble) text() string {
	if text := t.last.Load(); text != nil {
		return *text
	}
	return ""
}
