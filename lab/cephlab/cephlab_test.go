package cephlab

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"hayloft/internal/leaktest"
	"hayloft/lab/labtest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestCluster: it comes up, keeps what is written, and leaves no process.
func TestCluster(t *testing.T) {
	labtest.Root(t, "ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd")
	begun := time.Now()
	c, err := Start(t.Context(), Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Logf("usable after %v", time.Since(begun).Round(100*time.Millisecond))
	keyring, err := c.CreateUser(t.Context(), "hayloft")
	if err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	for _, args := range [][]string{{"create", "--size", "5B", "a"}, {"ls"}, {"info", "a"}} {
		out, err := c.run(t.Context(), "rbd", append([]string{"-c", c.Conf, "--id", "hayloft", "--keyring", keyring}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		if args[0] == "info" && !strings.Contains(out, "size 5 B") {
			t.Error(out)
		}
		t.Logf("%v at %v", args, time.Since(begun))
	}
	if err := c.End("osd"); err != nil {
		t.Error(err)
	}
	if err := c.StartOSD(); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Run(t.Context(), "rbd", "ls"); err != nil || out != "a" {
		t.Errorf("after a restart there is %q, %v", out, err)
	}
	c.Close()
	for name, d := range c.daemons {
		if err := d.process.Signal(syscall.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s lives: %v", name, err)
		}
	}
}
