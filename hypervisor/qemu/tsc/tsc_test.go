package tsc

import "testing"

func TestKHzIsSteady(t *testing.T) {
	first, err := KHz()
	if err != nil {
		t.Skip(err)
	}
	second, err := KHz()
	if err != nil {
		t.Fatal(err)
	}
	if first < 500_000 || first > 10_000_000 {
		t.Errorf("%d kHz is no processor's rate", first)
	}
	if ratio := float64(first) / float64(second); ratio < 0.99 || ratio > 1.01 {
		t.Errorf("two measurements differ: %d and %d kHz", first, second)
	}
	t.Logf("%d and %d kHz", first, second)
}
