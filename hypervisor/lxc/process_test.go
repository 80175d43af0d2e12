package lxc

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/lab/labtest"
)

// TestProcessOneIsFoundWhateverTheKernelLists: the list of children leaves process 1 out, and others end meanwhile.
func TestProcessOneIsFoundWhateverTheKernelLists(t *testing.T) {
	labtest.Root(t, "sleep", "true")
	monitor, err := identify(os.Getpid(), "")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := initOf(monitor); err == nil {
		t.Errorf("process 1 before there is one: %+v", p)
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	defer others.Wait()
	defer close(stop)
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = exec.Command("true").Run()
			}
		}
	})

	// The list that initOf looks at first is of the children of the process's first thread: this is another's.
	first := exec.Command("sleep", "1000")
	first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	begun, end := make(chan error), make(chan struct{})
	begin := func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		begun <- first.Start()
		<-end
	}
	others.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if unix.Gettid() != unix.Getpid() {
			begin()
			return
		}
		var other sync.WaitGroup
		other.Go(begin)
		other.Wait()
	})
	if err := <-begun; err != nil {
		close(end)
		t.Fatal(err)
	}
	defer func() {
		_ = first.Process.Kill()
		_ = first.Wait()
		close(end)
	}()
	if slices.Contains(listed(monitor.PID), first.Process.Pid) {
		t.Fatal("the first thread's list has it")
	}
	for range 20 {
		if p, err := initOf(monitor); err != nil || p.PID != first.Process.Pid {
			t.Fatalf("process 1 is %+v, %v; want %d", p, err, first.Process.Pid)
		}
	}
	gone := monitor
	gone.Ticks++ // its number is another's by now
	if p, err := initOf(gone); err == nil {
		t.Errorf("process 1 of a monitor that has ended: %+v", p)
	}
	if err := gone.signal(unix.SIGKILL); err != errNoProcess {
		t.Errorf("signal to a process that has ended: %v", err)
	}
}
