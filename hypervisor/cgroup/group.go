package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// Group is one control group, present in every hierarchy of its tree.
type Group struct {
	name string
	dirs []directory
}

type directory struct {
	path      string
	hierarchy Hierarchy
}

// Name is the group's name below the tree's root.
func (g *Group) Name() string { return g.name }

// Paths returns the group's directory in each hierarchy.
func (g *Group) Paths() []string {
	var out []string
	for _, d := range g.dirs {
		out = append(out, d.path)
	}
	return out
}

// Add moves a process with all its threads into the group.
func (g *Group) Add(pid int) error {
	for _, d := range g.dirs {
		if err := write(d.path, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("cgroup %s: add process %d: %w", g.name, pid, err)
		}
	}
	return nil
}

// Procs returns the processes in the group and in groups inside it, sorted. A group that is gone has none.
// A process of which only a thread is inside is none of them: that is a Start under way (see Start).
func (g *Group) Procs() ([]int, error) {
	var pids []int
	for _, d := range g.dirs {
		err := filepath.WalkDir(d.path, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.Name() != "cgroup.procs" {
				return gone(err)
			}
			text, err := os.ReadFile(path)
			if errors.Is(err, unix.EOPNOTSUPP) {
				return nil // of threads: the group above lists their processes
			}
			for _, word := range strings.Fields(string(text)) {
				pid, err := strconv.Atoi(word)
				if err == nil && pid > 0 && pid != os.Getpid() && (d.hierarchy.V2 || d.leads(pid)) {
					pids = append(pids, pid)
				}
			}
			return gone(err)
		})
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", g.name, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// leads reports whether the process's first thread is in the group or in one inside it (v1).
func (d directory) leads(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	own := filepath.Join(d.hierarchy.Root, strings.TrimPrefix(d.path, d.hierarchy.Path))
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // number:controllers:path
		if len(f) == 3 && slices.Contains(d.hierarchy.Controllers, strings.Split(f[1], ",")[0]) {
			return f[2] == own || strings.HasPrefix(f[2], own+"/")
		}
	}
	return false
}

// gone makes an error that says that a group vanished meanwhile into none.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// killRounds bounds how often Kill looks for processes that were forked meanwhile.
const killRounds = 20

// Kill sends SIGKILL to everything in the group, also to what is forked meanwhile, and returns without
// waiting for the end (Remove does). The v1 freezer is not used: it would also stop a thread of our own
// that is on its way through a Start.
func (g *Group) Kill() error {
	for _, d := range g.dirs {
		if d.hierarchy.V2 && exists(filepath.Join(d.path, "cgroup.kill")) {
			if err := gone(write(d.path, "cgroup.kill", "1")); err != nil {
				return fmt.Errorf("cgroup %s: kill: %w", g.name, err)
			}
		}
	}
	// Not only for v1: on hybrid hosts a process may be in the v1 groups without being in the v2 one.
	sent := map[int]bool{}
	for range killRounds {
		pids, err := g.Procs()
		fresh := false
		for _, pid := range pids {
			fresh = fresh || !sent[pid]
			sent[pid] = true
			if kill := unix.Kill(pid, unix.SIGKILL); kill != nil && !errors.Is(kill, unix.ESRCH) {
				err = errors.Join(err, fmt.Errorf("cgroup %s: kill process %d: %w", g.name, pid, kill))
			}
		}
		if err != nil || !fresh {
			return err
		}
	}
	return fault.Errorf(fault.Busy, "cgroup %s: processes are forked faster than they can be killed", g.name)
}

// removeLimit bounds how long Remove waits for processes that are ending.
const removeLimit = time.Minute

// Remove deletes the group and the groups inside it, waiting up to a minute for processes that are
// ending; fault.Busy when some stay. Removing what is gone is success.
func (g *Group) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	wait := time.Millisecond
	for {
		err := g.removeOnce()
		if err == nil || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fault.Errorf(fault.Busy, "cgroup %s: still has processes: %w", g.name, err)
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

func (g *Group) removeOnce() error {
	for _, d := range g.dirs {
		var dirs []string
		err := filepath.WalkDir(d.path, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return gone(err)
		})
		if err != nil {
			return fmt.Errorf("cgroup %s: %w", g.name, err)
		}
		for _, dir := range slices.Backward(dirs) {
			if err := gone(os.Remove(dir)); err != nil {
				return fmt.Errorf("cgroup %s: %w", g.name, err)
			}
		}
	}
	return nil
}

// Usage is what all processes of a group used so far.
type Usage struct {
	CPUSeconds  float64
	MemoryBytes int64 // anonymous and shared memory, without page cache
}

// Usage reads the group's counters; those of controllers that the host lacks are 0.
func (g *Group) Usage() (Usage, error) {
	var u Usage
	found := false
	for _, d := range g.dirs {
		if !exists(d.path) {
			continue
		}
		found = true
		if d.hierarchy.V2 {
			u.CPUSeconds = max(u.CPUSeconds, float64(counters(d.path, "cpu.stat")["usage_usec"])/1e6)
		} else if text, err := os.ReadFile(filepath.Join(d.path, "cpuacct.usage")); err == nil {
			ns, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			u.CPUSeconds = max(u.CPUSeconds, float64(ns)/1e9)
		}
		mem := counters(d.path, "memory.stat")
		u.MemoryBytes = max(u.MemoryBytes, mem["total_rss"]+mem["total_shmem"], mem["anon"]+mem["shmem"])
	}
	if !found {
		return u, fault.Errorf(fault.NotFound, "cgroup %s does not exist", g.name)
	}
	return u, nil
}

func counters(dir, file string) map[string]int64 {
	out := map[string]int64{}
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 {
			out[f[0]], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return out
}

func write(dir, file, value string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(value), 0)
}
