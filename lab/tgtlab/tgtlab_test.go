package tgtlab

import (
	"strings"
	"testing"
)

// TestServer: two at a time know nothing of each other, and one that was started anew has forgotten all.
func TestServer(t *testing.T) {
	one, other := Start(t), Start(t)
	if _, err := one.Tgtadm("--op", "new", "--mode", "target", "--tid", "1", "--targetname", "iqn.2026-01.org.hayloft:test"); err != nil {
		t.Fatal(err)
	}
	if err := one.Account("user", "password"); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[*Server]int{one: 1, other: 0} {
		if n, err := s.Targets(); n != want || err != nil {
			t.Errorf("%d targets, want %d: %v", n, want, err)
		}
	}
	one.Kill()
	if _, err := one.Targets(); err == nil || !strings.Contains(err.Error(), "tgtadm") {
		t.Errorf("killed: %v", err)
	}
	if err := one.Restart(); err != nil {
		t.Fatal(err)
	}
	if n, err := one.Targets(); n != 0 || err != nil {
		t.Errorf("%d targets, %v", n, err)
	}
}
