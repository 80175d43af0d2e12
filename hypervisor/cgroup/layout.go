// Package cgroup gives each machine of a host control groups of its own, with the same calls on hosts
// that mount cgroup v1, v2 or both (hybrid). Nothing outside the tree's own root is ever touched.
package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mode is how a host mounts its control groups.
type Mode string

// The modes. None is a host without control groups that we can see.
const (
	None    Mode = "none"
	V1      Mode = "v1"
	Unified Mode = "v2"
	Hybrid  Mode = "hybrid" // v1 controllers, and a cgroup2 mount beside them
)

// Hierarchy is one mounted control-group file system.
type Hierarchy struct {
	Path        string   // mount point
	Root        string   // the cgroup that is visible at Path, as /proc/PID/cgroup names it
	V2          bool     // cgroup2
	Controllers []string // v1: those mounted here; v2: those that may be enabled
}

// Layout is all hierarchies of a host.
type Layout struct {
	Mode        Mode
	Hierarchies []Hierarchy
}

// Controllers returns the names of all controllers, sorted.
func (l Layout) Controllers() []string {
	var all []string
	for _, h := range l.Hierarchies {
		all = append(all, h.Controllers...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Detect reads the layout from /proc/self/mountinfo. A host without control groups has Mode None and no error.
func Detect() (Layout, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Layout{}, fmt.Errorf("cgroup layout: %w", err)
	}
	defer f.Close()
	found, err := parseMounts(f)
	if err != nil {
		return Layout{}, fmt.Errorf("cgroup layout: %w", err)
	}
	var visible []Hierarchy
	for _, h := range found {
		if !reallyMounted(h) {
			continue // hidden below a later mount
		}
		if h.V2 {
			text, err := os.ReadFile(filepath.Join(h.Path, "cgroup.controllers"))
			if err != nil {
				continue
			}
			h.Controllers = strings.Fields(string(text))
		}
		visible = append(visible, h)
	}
	return Layout{Mode: modeOf(visible), Hierarchies: visible}, nil
}

func modeOf(hs []Hierarchy) Mode {
	var v1, v2 bool
	for _, h := range hs {
		v1, v2 = v1 || !h.V2, v2 || h.V2
	}
	switch {
	case v1 && v2:
		return Hybrid
	case v1:
		return V1
	case v2:
		return Unified
	}
	return None
}

func reallyMounted(h Hierarchy) bool {
	var st unix.Statfs_t
	if unix.Statfs(h.Path, &st) != nil {
		return false
	}
	if h.V2 {
		return st.Type == unix.CGROUP2_SUPER_MAGIC
	}
	return st.Type == unix.CGROUP_SUPER_MAGIC
}

// v1Options are the words in a v1 mount's super options that are not controllers.
var v1Options = []string{"rw", "ro", "noprefix", "clone_children", "xattr", "none", "all", "cpuset_v2_mode", "favordynmods", "nofavordynmods"}

// parseMounts finds control-group mounts in mountinfo (proc(5)): one per v1 controller set, one for v2.
// Named v1 hierarchies without controllers are left out.
func parseMounts(r io.Reader) ([]Hierarchy, error) {
	var out []Hierarchy
	seen := map[string]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		mount, super, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(mount), strings.Fields(super)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		h := Hierarchy{Path: unescape(left[4]), Root: unescape(left[3])}
		switch right[0] {
		case "cgroup2":
			h.V2 = true
		case "cgroup":
			for _, o := range strings.Split(right[2], ",") {
				if !strings.Contains(o, "=") && !slices.Contains(v1Options, o) {
					h.Controllers = append(h.Controllers, o)
				}
			}
			if len(h.Controllers) == 0 {
				continue
			}
		default:
			continue
		}
		key := fmt.Sprint(h.V2, h.Controllers)
		if !seen[key] {
			seen[key] = true
			out = append(out, h)
		}
	}
	return out, lines.Err()
}

// unescape undoes the kernel's \040 writing of spaces, tabs, newlines and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
