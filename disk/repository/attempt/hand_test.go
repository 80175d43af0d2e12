package attempt

import (
	"errors"
	"slices"
	"testing"
)

func TestHand(t *testing.T) {
	gone, wrong := errors.New("gone"), errors.New("wrong")
	var discarded []int
	hand := func() *Hand[int] { return &Hand[int]{Discard: func(v int) { discarded = append(discarded, v) }} }

	h := hand()
	if err := h.Give(1, nil); err != nil {
		t.Error(err)
	}
	if v, err := h.Take(nil); v != 1 || err != nil {
		t.Errorf("took %d, %v", v, err)
	}
	h = hand()
	if _, err := h.Take(h.Give(2, wrong)); !errors.Is(err, wrong) || discarded != nil {
		t.Errorf("failed: %v, discarded %v", err, discarded)
	}
	h = hand()
	_ = h.Give(3, nil)
	if v, err := h.Take(gone); v != 0 || !errors.Is(err, gone) || !slices.Equal(discarded, []int{3}) {
		t.Errorf("left after it came: %d, %v, discarded %v", v, err, discarded)
	}
	h = hand()
	_, _ = h.Take(gone)
	if err := h.Give(4, nil); err != nil || !slices.Equal(discarded, []int{3, 4}) {
		t.Errorf("left before it came: %v, discarded %v", err, discarded)
	}
}
