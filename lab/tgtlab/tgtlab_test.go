package tgtlab

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/lab/labtest"
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

// TestServe: QEMU reads a file through a target.
func TestServe(t *testing.T) {
	labtest.Root(t, "qemu-io")
	s := Start(t)
	file := filepath.Join(t.TempDir(), "unit")
	if err := os.WriteFile(file, bytes.Repeat([]byte{7}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const target = "iqn.2026-01.org.hayloft:file"
	if err := s.Serve(1, target, file); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-io", "-f", "raw", "-r", "-c", "read -P 7 0 1M", "iscsi://"+s.Portal+"/"+target+"/1").CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("failed")) {
		t.Errorf("%v: %s", err, out)
	}
	if err := s.Serve(2, target+"2", file+".none"); err == nil || !strings.Contains(err.Error(), "tgtadm") {
		t.Errorf("a file that is not there: %v", err)
	}
}
