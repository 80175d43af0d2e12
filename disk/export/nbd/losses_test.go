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

// TestWhole: reads in one piece are asked for where that is wanted and the server can.
func TestWhole(t *testing.T) {
	for _, tt := range []struct {
		dialer Dialer
		flags  uint16
		want   uint16
	}{{Dialer{Whole: true}, flagHasFlags | flagDF, cmdDF}, {Dialer{Whole: true}, flagHasFlags, 0}, {Dialer{}, flagHasFlags | flagDF, 0}} {
		asked := make(chan request, 1)
		c := dial(t, fake(t, 1000, tt.flags, true, func(r *raw) {
			p := make([]byte, requestSize)
			if _, err := io.ReadFull(r, p); err != nil {
				return
			}
			q, _ := parseRequest(p)
			asked <- q
			r.Write(bytesOf(uint32(magicStructured), uint16(1), uint16(replyData), q.cookie, uint32(18), q.offset, "abcdefghij"))
			_, _ = io.ReadFull(r, p)
		}), tt.dialer)
		p := make([]byte, 10)
		if err := c.Read(t.Context(), p, 10); err != nil || string(p) != "abcdefghij" {
			t.Errorf("%q, %v", p, err)
		}
		if q := <-asked; q.flags != tt.want {
			t.Errorf("flags %#x, want %#x", q.flags, tt.want)
		}
	}
}
