package fleet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/hypervisor/cgroup"
	"hayloft/internal/children"
)

// ticksPerSecond is the unit of processor times in /proc (USER_HZ, the same on all of Linux's platforms here).
const ticksPerSecond = 100

// Usage is what a run has taken up to a moment.
type Usage struct {
	At        time.Time
	Processes []ProcessUsage // of Hayloft: up, server, agent
	Machines  float64        // CPU seconds of all machines that are there, by their control groups
	Host      float64        // CPU seconds of everything on this computer since it started
}

// ProcessUsage is one process of Hayloft.
type ProcessUsage struct {
	Name       string
	PID        int
	CPUSeconds float64 // of its own and of the programs that it has run to their end
	RSS, PSS   int64   // bytes
}

// Hayloft is the CPU seconds of all of Hayloft's processes.
func (u Usage) Hayloft() float64 {
	var sum float64
	for _, p := range u.Processes {
		sum += p.CPUSeconds
	}
	return sum
}

// Usage measures.
func (f *Fleet) Usage() (Usage, error) {
	u := Usage{At: time.Now()}
	for _, pid := range append([]int{f.up.Process.Pid}, children.Of(f.up.Process.Pid)...) {
		p, err := processUsage(pid)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it is being started again
		}
		if err != nil {
			return u, err
		}
		u.Processes = append(u.Processes, p)
	}
	var err error
	if u.Machines, err = f.Site.MachineSeconds(); err != nil {
		return u, err
	}
	u.Host, err = HostSeconds()
	return u, err
}

func processUsage(pid int) (ProcessUsage, error) {
	p := ProcessUsage{PID: pid}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return p, err
	}
	if words := strings.Split(string(line), "\x00"); len(words) > 1 {
		p.Name = words[1]
	}
	fields := stat(pid)
	if fields == nil {
		return p, os.ErrNotExist
	}
	var ticks int64
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(field, 10, 64)
		ticks += n
	}
	p.CPUSeconds = float64(ticks) / ticksPerSecond
	p.RSS, p.PSS, err = memory(pid)
	return p, err
}

// memory of one process in bytes: resident, and with what it shares divided among its users.
func memory(pid int) (rss, pss int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		kB, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "Rss:":
			rss = kB << 10
		case "Pss:":
			pss = kB << 10
		}
	}
	return rss, pss, err
}

// MachineSeconds is the CPU time of all machines that are there, by their control groups; 0 where the host has
// none.
func (s *Site) MachineSeconds() (float64, error) {
	tree, err := cgroup.New(s.Name)
	if err != nil || !tree.Available() {
		return 0, err
	}
	names, err := tree.List()
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, name := range names {
		group, err := tree.Open(name)
		if err == nil {
			var u cgroup.Usage
			u, err = group.Usage()
			sum += u.CPUSeconds
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return sum, err
		}
	}
	return sum, nil
}

// HostSeconds is the CPU time that this computer has worked since it started.
func HostSeconds() (float64, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(strings.SplitN(string(text), "\n", 2)[0])
	var ticks int64
	for i, field := range fields {
		// user nice system idle iowait irq softirq steal; guest is in user.
		if i == 0 || i == 4 || i == 5 || i > 7 {
			continue
		}
		n, _ := strconv.ParseInt(field, 10, 64)
		ticks += n
	}
	return float64(ticks) / ticksPerSecond, nil
}

// QEMUs finds the QEMU processes in the site's namespace.
func (s *Site) QEMUs() []int {
	var pids []int
	for _, p := range processes() {
		program, _, _ := strings.Cut(p.line, " ")
		if p.netns == s.Namespace.Inode && strings.HasPrefix(filepath.Base(program), "qemu-system") {
			pids = append(pids, p.pid)
		}
	}
	return pids
}
