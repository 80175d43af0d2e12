package nbd

import (
	"io"
	"slices"
	"testing"
	"time"

	"hayloft/cloud/fault"
)

// TestPoison: a request for which the server ends each connection fails long before patience does.
func TestPoison(t *testing.T) {
	hangUp := func(r *raw) { _, _ = io.ReadFull(r, make([]byte, requestSize)) }
	c := dial(t, fake(t, 1000, flagHasFlags, true, slices.Repeat([]func(*raw){hangUp}, 2*maxLosses)...), Dialer{Patience: time.Hour})
	if err := c.Read(t.Context(), make([]byte, 10), 0); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}
