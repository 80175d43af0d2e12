package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts cmd as a member of the group: its first instruction already runs inside, in every hierarchy,
// so that nothing it forks can be left outside. cmd.SysProcAttr may hold other settings, but no Pdeathsig.
//
// On v2 the kernel makes the child in the group (CLONE_INTO_CGROUP). On v1, where each thread has its own
// membership, a thread enters the groups, starts the child, which inherits them, and ends.
func (g *Group) Start(cmd *exec.Cmd) error {
	var v1 []directory
	for _, d := range g.dirs {
		if !d.hierarchy.V2 {
			v1 = append(v1, d)
			continue
		}
		fd, err := unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("cgroup %s: %w", g.name, &os.PathError{Op: "open", Path: d.path, Err: err})
		}
		defer unix.Close(fd)
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
		defer func() { cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = false, 0 }()
	}
	if len(v1) == 0 {
		return cmd.Start()
	}
	done := make(chan error, 1)
	onOwnThread(func() {
		for _, d := range v1 {
			if err := write(d.path, "tasks", strconv.Itoa(unix.Gettid())); err != nil {
				done <- fmt.Errorf("cgroup %s: enter: %w", g.name, err)
				return
			}
		}
		done <- cmd.Start()
	})
	return <-done
}

// onOwnThread runs fn on a thread that ends with it. The process's first thread cannot end, so when the
// goroutine happens to be there it holds that thread while another goroutine does the work.
func onOwnThread(fn func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn() // returning without unlocking ends the thread
			return
		}
		defer runtime.UnlockOSThread()
		finished := make(chan struct{})
		onOwnThread(func() { defer close(finished); fn() })
		<-finished
	}()
}
