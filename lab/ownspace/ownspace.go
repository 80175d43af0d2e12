// Package ownspace runs a test once more in a child process that has namespaces of its own: what it mounts, and what it
// does to the network, nobody else sees, and it is gone with that process, however it ends.
package ownspace

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/lab/labtest"
)

// The namespaces that a test can have.
const (
	Mounts  = unix.CLONE_NEWNS  // what is mounted outside stays, changes to it are its own
	Network = unix.CLONE_NEWNET // with nothing but a loopback, which is down
)

const (
	insideVar = "HAYLOFT_OWNSPACE" // tells the child which test it is
	limit     = 10 * time.Minute   // for one child, on a machine with much else to do
)

// Inside reports whether this is a child.
func Inside() bool { return os.Getenv(insideVar) != "" }

// Run has the test, whose name is t.Name(), do f in namespaces of its own. On the outside it starts the test again in the
// child, and passes or fails as that did; f runs in the child only, what is around the call in both.
func Run(t *testing.T, spaces uintptr, f func(t *testing.T), programs ...string) {
	t.Helper()
	labtest.Root(t, programs...)
	if os.Getenv(insideVar) == t.Name() {
		f(t)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.count=1", "-test.run="+pattern(t.Name()))
	child.Env = append(os.Environ(), insideVar+"="+t.Name(), "GOCOVERDIR="+t.TempDir(), "TMPDIR="+t.TempDir())
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: spaces, Pdeathsig: syscall.SIGKILL}
	child.WaitDelay = 20 * time.Second
	runtime.LockOSThread() // the child dies with the thread that started it
	defer runtime.UnlockOSThread()
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("in namespaces of its own: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) { // what f says
		if _, text, ok := strings.Cut(line, ".go:"); ok {
			t.Log(strings.TrimSpace(text))
		}
	}
}

// pattern matches one test, and those that lead to it.
func pattern(name string) string {
	elements := strings.Split(name, "/")
	for i, e := range elements {
		elements[i] = "^" + e + "$"
	}
	return strings.Join(elements, "/")
}
