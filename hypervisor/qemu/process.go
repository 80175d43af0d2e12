package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nonceVariable is the environment variable that marks a domain's process.
const nonceVariable = "HAYLOFT_DOMAIN"

// process is a living QEMU, child of ours or not.
type process struct {
	pid   int
	fd    *os.File      // pidfd, pollable
	ended chan struct{} // closed when the process is gone and the domain knows
}

// openProcess takes hold of pid, if it is still the process with this nonce; else it returns nil.
func openProcess(pid int, nonce string) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: pidfd: %w", pid, err)
	}
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd"), ended: make(chan struct{})}
	// The check comes after opening: what it finds is the process that the pidfd holds, or that one is gone.
	if nonce != "" && !hasNonce(pid, nonce) || p.gone() {
		p.fd.Close()
		return nil, nil
	}
	return p, nil
}

// hasNonce is false for zombies too, whose environment is empty.
func hasNonce(pid int, nonce string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+nonceVariable+"="+nonce+"\x00"))
}

// findProcess looks for the process with nonce among all; 0 when there is none.
func findProcess(nonce string) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && hasNonce(pid, nonce) {
			return pid
		}
	}
	return 0
}

func exited(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

func (p *process) gone() bool {
	gone := true
	if raw, err := p.fd.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { gone = exited(fd) })
	}
	return gone
}

// wait returns when the process has ended, with what is known of how, or with false when the pidfd was closed.
func (p *process) wait() (how string, ended bool) {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return "", false
	}
	if err := raw.Read(exited); err != nil {
		return "", false
	}
	var status unix.WaitStatus
	if pid, err := unix.Wait4(p.pid, &status, unix.WNOHANG, nil); err != nil || pid != p.pid {
		return "the process is gone", true // not our child: nobody tells us more
	}
	if status.Signaled() {
		return fmt.Sprintf("killed by signal %d (%s)", status.Signal(), unix.SignalName(status.Signal())), true
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus()), true
}

// kill sends SIGKILL to the process, which may be gone already.
func (p *process) kill() error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return nil // closed: the driver has let go
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if err != nil || errors.Is(sent, unix.ESRCH) {
		return nil
	}
	if sent != nil {
		return fmt.Errorf("process %d: kill: %w", p.pid, sent)
	}
	return nil
}

// tail returns at most max bytes from the end of the file at path; a missing file is empty.
func tail(path string, max int) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max0(info.Size() - int64(max))
	text := make([]byte, info.Size()-from)
	n, err := f.ReadAt(text, from)
	if n < len(text) && err != nil && n == 0 {
		return nil, err
	}
	// A log that was bounded by punching holes starts with zeroes.
	return bytes.TrimLeft(text[:n], "\x00"), nil
}

func max0(n int64) int64 { return max(n, 0) }

// words is what QEMU itself said on stderr, on one line.
func words(runtimeDir string) string {
	text, _ := tail(filepath.Join(runtimeDir, qemuLog), 2048)
	var lines []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if before, after, ok := strings.Cut(line, ": "); ok && strings.HasPrefix(before, "qemu-system-") {
			line = after
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
