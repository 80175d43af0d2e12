package ssh

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"hayloft/internal/children"
)

// TestEndOfASession: what starts others while it is ended is ended with them. The script alone, without SSH.
func TestEndOfASession(t *testing.T) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		mine := t.TempDir() // an argument of all of them
		session := exec.Command("sh", "-c", `sh -c "while :; do (/bin/true $1; /bin/true $1) | /bin/sh -c : $1; done" & wait`, "session", mine)
		if err := session.Start(); err != nil {
			t.Fatal(err)
		}
		pid := session.Process.Pid
		eventually(t, "the program", func() bool { return len(children.Under(pid)) > 2 })
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		start := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[19]
		another := strconv.Itoa(os.Getpid()) + ":1" // has had our number
		if out, err := exec.Command("sh", "-c", endScript, "end", strings.TrimSpace(string(boot)), strconv.Itoa(pid)+":"+start, another).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if err := session.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the session: %v", err)
		}
		for _, pid := range children.Under(1) {
			if b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); err == nil && strings.Contains(string(b), mine) {
				t.Errorf("process %d goes on: %q", pid, b)
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Kill()
				}
			}
		}
	}
}
