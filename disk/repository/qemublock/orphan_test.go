package qemublock

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/lab/labtest"
)

const ownerVar = "HAYLOFT_TEST_OWNER"

// TestOwner is the process that TestOwnerKilled kills.
func TestOwner(t *testing.T) {
	path := os.Getenv(ownerVar)
	if path == "" {
		t.Skip("is run by TestOwnerKilled")
	}
	d := open(t, Options{Node: file{path}})
	fmt.Println("child", d.child.process.Pid, d.child.dir.path)
	select {}
}

// TestOwnerKilled: the child ends with its owner, and the next one removes what they left.
func TestOwnerKilled(t *testing.T) {
	labtest.Root(t, program)
	path := fileOf(t, noise(4096))
	owner := exec.Command(os.Args[0], "-test.run=^TestOwner$")
	owner.Env = append(os.Environ(), ownerVar+"="+path)
	owner.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var dir string
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(strings.TrimSpace(lines.Text()), "child %d %s", &pid, &dir)
	}
	child, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	for { // ends with the test's limit
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(child), Events: unix.POLLIN}}, -1)
		if n == 1 {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			t.Fatalf("the child %d lives: %v", pid, err)
		}
	}
	open(t, Options{Node: file{path}})
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", dir, err)
	}
}
