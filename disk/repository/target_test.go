package repository

import (
	"strings"
	"testing"

	"hayloft/cloud/fault"
)

// TestBusySaysWhatToDo: who meets another's image learns whose it is and how to take it when that never comes back.
func TestBusySaysWhatToDo(t *testing.T) {
	m := Mark{Owner: Owner{Host: "node9", Machine: 4}, Generation: 7}
	undrained := m
	undrained.Undrained = true
	for _, c := range []struct {
		mark Mark
		says []string
	}{
		{m, []string{"machine 4", "host node9", "hayloft image release IMAGE"}},
		{undrained, []string{"machine 4", "host node9", "generation 7", "hayloft image release IMAGE --accept-stale"}},
	} {
		err := c.mark.Busy()
		if !fault.Is(err, fault.Busy) {
			t.Errorf("class of %q", err)
		}
		for _, words := range c.says {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("%q does not say %q", err, words)
			}
		}
	}
	if strings.Contains(m.Busy().Error(), "--accept-stale") {
		t.Error("nothing is stale of an image without undrained writes")
	}
}
