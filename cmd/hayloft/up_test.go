package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"hayloft/cloud/fault"
)

// TestOneUpAtATime: however they come and go, one has the lock.
func TestOneUpAtATime(t *testing.T) {
	f := upFlags{stateDir: t.TempDir()}
	var holders, held atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				release, err := f.lock()
				if fault.Is(err, fault.Busy) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if held.Add(1); holders.Add(1) != 1 {
					t.Error("two have the lock")
				}
				holders.Add(-1)
				release()
			}
		})
	}
	all.Wait()
	if held.Load() == 0 {
		t.Error("nobody ever had the lock")
	}
}

// TestDownWhileUpBegins: what has the lock and has not said yet which process it is is waited for, and then ended.
func TestDownWhileUpBegins(t *testing.T) {
	f := upFlags{stateDir: t.TempDir()}
	release, err := f.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := os.Truncate(f.pidFile(), 0); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.endUp(t.Context()) }()
	if err := os.WriteFile(f.pidFile(), []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("the process that has the lock ended with %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestDownWithoutUp(t *testing.T) {
	f := upFlags{stateDir: t.TempDir()}
	if err := f.endUp(t.Context()); err != nil || f.running() {
		t.Error(err)
	}
	f.stateDir += "/none"
	if err := f.endUp(t.Context()); err != nil {
		t.Error(err)
	}
}
