package fuse

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// heldFD is the number of the connection in its holder.
const heldFD = 3

// holder is a process that does nothing but keep the connection open, so that the kernel has requests wait when the
// process that answers them dies, instead of failing them.
type holder struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // as in /proc/PID/stat: with it, a process that has the number later is not taken for it
}

// orphan is what a holder does: when its standard input ends, which it does with the process that started it, it waits
// for a successor of that for so many seconds, and ends. A successor ends it as soon as it has one of its own.
const orphan = "read -r nothing; exec sleep "

// hold starts a holder of fd, which ends a time after this process, or by release. gone is closed when it has ended and
// was waited for; leave ends its standard input.
func hold(fd int, unattended time.Duration) (h holder, leave *os.File, gone <-chan struct{}, err error) {
	in, leave, err := os.Pipe()
	if err != nil {
		return h, nil, nil, err
	}
	defer in.Close()
	defer func() {
		if err != nil {
			leave.Close()
		}
	}()
	duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return h, nil, nil, err
	}
	file := os.NewFile(uintptr(duplicate), "/dev/fuse")
	defer file.Close()
	c := exec.Command("sh", "-c", orphan+strconv.FormatFloat(unattended.Seconds(), 'f', 3, 64))
	c.Stdin = in
	c.ExtraFiles = []*os.File{file}
	c.Dir = "/"
	c.Env = []string{"PATH=" + os.Getenv("PATH")}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return h, nil, nil, fmt.Errorf("holder of the connection: %w", err)
	}
	done := make(chan struct{})
	go func() { // ends with the holder, see release
		defer close(done)
		c.Wait()
	}()
	h = holder{PID: c.Process.Pid, Start: startOf(c.Process.Pid)}
	return h, leave, done, nil
}

// startOf is when a process was started, "" when there is none.
func startOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name of the program, in parentheses, may have anything in it; after it come fields 3 and on (proc(5)).
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// open gives a pidfd of the holder; fault.NotFound when it lives no more.
func (h holder) open() (int, error) {
	if h.PID <= 1 || h.Start == "" {
		return -1, fault.Errorf(fault.NotFound, "no holder")
	}
	process, err := unix.PidfdOpen(h.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, fault.Errorf(fault.NotFound, "holder %d is gone", h.PID)
	}
	if err != nil {
		return -1, err
	}
	if startOf(h.PID) != h.Start {
		unix.Close(process)
		return -1, fault.Errorf(fault.NotFound, "process %d is another", h.PID)
	}
	return process, nil
}

// connection gives a descriptor of what is held.
func (h holder) connection() (int, error) {
	process, err := h.open()
	if err != nil {
		return -1, err
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, heldFD, 0)                // close-on-exec
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) { // ended, but nobody waited for it; or not a holder
		return -1, fault.Errorf(fault.NotFound, "process %d holds no connection", h.PID)
	}
	if err != nil {
		return -1, fmt.Errorf("connection of holder %d: %w", h.PID, err)
	}
	var st, device unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Stat("/dev/fuse", &device)); err != nil || st.Rdev != device.Rdev || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		unix.Close(fd)
		return -1, errors.Join(err, fault.Errorf(fault.NotFound, "process %d holds no connection", h.PID))
	}
	return fd, nil
}

// release ends the holder.
func (h holder) release() {
	if process, err := h.open(); err == nil {
		unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0)
		unix.Close(process)
	}
}
