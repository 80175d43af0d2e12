// Package labtest is the one place where tests say what they need from the machine.
package labtest

import (
	"os"
	"os/exec"
	"testing"
)

// Root marks a test that needs root and the named programs. Without HAYLOFT_LAB=1 it is skipped (make
// check); with it, as in make test, anything missing is a failure: such a test never skips silently.
func Root(t testing.TB, programs ...string) {
	t.Helper()
	if os.Getenv("HAYLOFT_LAB") != "1" {
		t.Skip("needs root and the lab: run by make test (HAYLOFT_LAB=1)")
	}
	if os.Geteuid() != 0 {
		t.Fatal("HAYLOFT_LAB=1 but not root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("HAYLOFT_LAB=1 but %s is not installed", p)
		}
	}
}

// Lacks ends a test that found only meanwhile that the machine cannot do something: it is a failure with HAYLOFT_LAB=1,
// as in Root, and skipped without.
func Lacks(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("HAYLOFT_LAB") == "1" {
		t.Fatalf("HAYLOFT_LAB=1 but the machine lacks %s", what)
	}
	t.Skipf("needs %s", what)
}
