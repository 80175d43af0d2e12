package guest

import (
	"context"
	"testing"
	"time"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

// ForTest starts a guest for a test, which needs the lab, and ends it with the test. What is empty in the Config gets
// a value; after a failure the console is in the test's log.
func ForTest(t testing.TB, c Config) *Guest {
	t.Helper()
	labtest.Root(t, "qemu-system-x86_64", "go")
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.Log == nil {
		c.Log = func(line string) { t.Log(line) }
	}
	began := time.Now()
	g, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel guest: up after %.1f s, %.1f s of CPU", time.Since(began).Seconds(), g.CPUSeconds())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of the kernel guest: %s", g.Console())
		}
		if _, err := g.PowerCut(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// Script runs a shell script in the guest, ends the test when it fails, and returns its output.
func (g *Guest) Script(ctx context.Context, t testing.TB, text string) string {
	t.Helper()
	out, err := g.Run(ctx, command.Cmd{Name: "/bin/sh", Args: []string{"-ec", text}})
	if err != nil {
		t.Fatalf("%s: %v\n%s", text, err, out)
	}
	return string(out)
}
