package lxc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/children"
)

// process names a process for good: numbers are used again, a number with its start time is not.
type process struct {
	PID   int
	Ticks uint64 // start time since boot, field 22 of /proc/PID/stat
	Boot  string // the host's boot id
}

var errNoProcess = errors.New("no such process")

func identify(pid int, boot string) (process, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, errNoProcess
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return process{}, errNoProcess
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	return process{PID: pid, Ticks: ticks, Boot: boot}, err
}

func (p process) alive() bool {
	now, err := identify(p.PID, p.Boot)
	return err == nil && now == p
}

// open returns a pidfd in the runtime's poller, so that waiting for the end takes no thread.
func (p process) open() (*os.File, error) {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, errNoProcess
	}
	if !p.alive() { // the number may have been another's before it was opened
		unix.Close(fd)
		return nil, errNoProcess
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// awaitExit waits until the process behind the pidfd has ended; an error when the file was closed.
func awaitExit(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	})
}

// signal sends s to the process and to no other that has its number by now; errNoProcess when it has ended.
func (p process) signal(s syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return errNoProcess
	}
	defer unix.Close(fd)
	if !p.alive() {
		return errNoProcess
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); !errors.Is(err, unix.ESRCH) {
		return err
	}
	return errNoProcess
}

// exits waits for the end of p for at most limit and says whether it came.
func (p process) exits(ctx context.Context, limit time.Duration) bool {
	pidfd, err := p.open()
	if err != nil {
		return true
	}
	defer pidfd.Close()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return awaitExit(pidfd) == nil
}

// initOf finds process 1 of the container: the monitor's child that is 1 in a PID namespace of its own.
// errNoProcess while there is none, as between two boots.
func initOf(monitor process) (process, error) {
	init, err := firstOf(monitor, listed(monitor.PID))
	if err != nil {
		// The kernel's list may leave one out while another ends.
		init, err = firstOf(monitor, children.Of(monitor.PID))
	}
	if err == nil && !monitor.alive() { // they were another's: the number has been used again
		return process{}, errNoProcess
	}
	return init, err
}

// listed are the children that the kernel lists at once. One that it leaves out may be there (proc(5)).
func listed(pid int) (pids []int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for word := range strings.FieldsSeq(string(text)) {
		if child, err := strconv.Atoi(word); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

// firstOf is the one of pids that is a child of the monitor and process 1 in a PID namespace.
func firstOf(monitor process, pids []int) (process, error) {
	for _, pid := range pids {
		p, err := identify(pid, monitor.Boot)
		if err != nil {
			continue
		}
		spaces := strings.Fields(statusField(pid, "NSpid"))
		if len(spaces) > 1 && spaces[len(spaces)-1] == "1" && statusField(pid, "PPid") == strconv.Itoa(monitor.PID) && p.alive() {
			return p, nil
		}
	}
	return process{}, errNoProcess
}

func statusField(pid int, name string) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// listens reports whether process 1 does something of its own on the signal: catches it, or blocks it to
// fetch it, as systemd and busybox do.
func listens(init, monitor process, signal syscall.Signal) bool {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", init.PID))
	lxc, lxcErr := os.Readlink(fmt.Sprintf("/proc/%d/exe", monitor.PID))
	if err != nil || lxcErr != nil || own == lxc {
		return false // still lxc's own code, before the guest's
	}
	for _, field := range []string{"SigBlk", "SigCgt"} {
		mask, err := strconv.ParseUint(statusField(init.PID, field), 16, 64)
		if err == nil && mask&(1<<(uint(signal)-1)) != 0 {
			return true
		}
	}
	return false
}

// The signals that ask for the end and for a restart, in the order of preference. systemd halts on
// SIGRTMIN+3, sysvinit and most others on SIGPWR, busybox on SIGUSR2; all restart on SIGINT, which is
// ctrl-alt-del, or on SIGTERM (busybox).
var (
	haltSignals   = []syscall.Signal{37, syscall.SIGPWR, syscall.SIGUSR2, syscall.SIGTERM}
	rebootSignals = []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}
)

// ask sends the first signal that the guest listens to. A guest that has just begun to boot does not listen
// yet; after patience the usual signal is sent anyway.
func ask(turn context.Context, monitor process, signals []syscall.Signal, usual syscall.Signal, patience time.Duration) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for last := false; ; {
		init, err := initOf(monitor)
		for _, s := range signals {
			if err == nil && listens(init, monitor, s) {
				return init.signal(s)
			}
		}
		if last {
			if err == nil {
				err = init.signal(usual)
			}
			return err
		}
		select {
		case <-tick.C:
			last = !monitor.alive()
		case <-limit.C:
			last = true
		case <-turn.Done():
			return context.Cause(turn)
		}
	}
}
