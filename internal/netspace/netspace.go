// Package netspace moves a process into a named network namespace, as ip-netns(8) keeps them.
package netspace

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// Dir is where named network namespaces are.
const Dir = "/run/netns"

const mark = "HAYLOFT_NETNS"

// ParentVariable names the environment variable with the number of the process with which this one is to
// end, by SIGTERM. A death signal belongs to a thread, and is lost when another one executes a program
// (prctl(2), PR_SET_PDEATHSIG); so Enter arranges it anew.
const ParentVariable = "HAYLOFT_PARENT"

// Enter continues this program inside the named network namespace: it executes itself again there, with
// all threads, and returns nil at once when it is there already. Only the network changes; mounts stay.
// Call it before anything else is started.
func Enter(name string) error {
	if name == "" || os.Getenv(mark) == name {
		return nil
	}
	if strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return fault.Errorf(fault.Invalid, "network namespace %q: no such name can be", name)
	}
	fd, err := unix.Open(filepath.Join(Dir, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.Errorf(fault.NotFound, "network namespace %s: %w (make it with: ip netns add %s)", name, err, name)
	}
	defer unix.Close(fd)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The thread that executes the new program decides its namespaces.
	runtime.LockOSThread()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fault.Errorf(fault.Permission, "network namespace %s: %w", name, err)
	}
	if err := endWithParent(); err != nil {
		return err
	}
	return unix.Exec(self, os.Args, append(os.Environ(), mark+"="+name))
}

// endWithParent gives this thread the death signal that the process was started with.
func endWithParent() error {
	parent := os.Getenv(ParentVariable)
	if parent == "" {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return err
	}
	if strconv.Itoa(os.Getppid()) != parent {
		return fault.Errorf(fault.Unavailable, "process %s, which started this one, has ended", parent)
	}
	return nil
}
