package fleet

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is one process as seen at a moment; start tells it from a later one with the same number.
type process struct {
	pid   int
	start uint64
	netns uint64
	line  string // its arguments, separated by spaces
}

func (p process) String() string {
	line := p.line
	if len(line) > 120 {
		line = line[:120] + "..."
	}
	return fmt.Sprintf("process %d (%s)", p.pid, line)
}

// names reports whether an argument is or contains the directory.
func (p process) names(dir string) bool {
	if dir == "" {
		return false
	}
	at := strings.Index(p.line, dir)
	if at < 0 {
		return false
	}
	end := at + len(dir)
	return end == len(p.line) || strings.ContainsRune("/ ,:", rune(p.line[end]))
}

// kill ends it, unless the number is another's by now.
func (p process) kill() {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if startOf(p.pid) == p.start {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// processes are all that live, without threads of the kernel and without those that have ended.
func processes() []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var all []process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(line) == 0 {
			continue
		}
		p := process{pid: pid, start: startOf(pid), line: string(bytes.TrimSpace(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))}
		var st unix.Stat_t
		if unix.Stat(dir+"/ns/net", &st) == nil {
			p.netns = st.Ino
		}
		all = append(all, p)
	}
	return all
}

// stat returns the fields of /proc/PID/stat from the third on, nil when there is no such process.
func stat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return nil
	}
	return fields
}

// startOf is when a process started, in ticks since the machine did; 0 when there is none, or only its remains.
func startOf(pid int) uint64 {
	fields := stat(pid)
	if fields == nil || fields[0] == "Z" || fields[0] == "X" {
		return 0
	}
	start, _ := strconv.ParseUint(fields[19], 10, 64)
	return start
}

// lineage is this process with its parents.
func lineage() []int {
	var pids []int
	for pid := os.Getpid(); pid > 1; {
		pids = append(pids, pid)
		fields := stat(pid)
		if fields == nil {
			break
		}
		pid, _ = strconv.Atoi(fields[1])
	}
	return pids
}

// mountPoints are those of this process's mount namespace, in the order of mounting.
func mountPoints() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, unescape(fields[4]))
		}
	}
	return points, nil
}

// unescape reads the octal escapes of mountinfo (proc_pid_mountinfo(5)).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if code, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
