package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hayloft/cloud/fault"
	"hayloft/lab/labtest"
)

func TestParseMounts(t *testing.T) {
	tests := []struct {
		name, mountinfo string
		want            []Hierarchy
		mode            Mode
	}{
		{"v2", `25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate`,
			[]Hierarchy{{Path: "/sys/fs/cgroup", Root: "/", V2: true}}, Unified},
		{"v1", `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd`,
			[]Hierarchy{{Path: "/sys/fs/cgroup/cpu,cpuacct", Root: "/", Controllers: []string{"cpu", "cpuacct"}},
				{Path: "/sys/fs/cgroup/memory", Root: "/docker/abc", Controllers: []string{"memory"}}}, V1},
		{"hybrid, once each, with a space", `39 31 0:36 / /sys/fs/cg\040x/pids rw - cgroup cgroup rw,pids
39 31 0:36 / /elsewhere rw - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`,
			[]Hierarchy{{Path: "/sys/fs/cg x/pids", Root: "/", Controllers: []string{"pids"}},
				{Path: "/sys/fs/cgroup/unified", Root: "/", V2: true}}, Hybrid},
		{"none, and nonsense", "31 23 0:28 / / rw - ext4 /dev/vda rw\nxx - cgroup\n", nil, None},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMounts(strings.NewReader(tt.mountinfo))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if m := modeOf(got); m != tt.mode {
				t.Errorf("mode %s, want %s", m, tt.mode)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	l := Limits{CPU: 0.5, MemoryMB: 64, PIDs: 10}
	v1 := directory{hierarchy: Hierarchy{Controllers: []string{"cpu", "memory", "pids"}}}
	v2 := directory{hierarchy: Hierarchy{V2: true, Controllers: []string{"cpu", "io", "memory", "pids"}}}
	if d := cmp.Diff(map[string]string{"cpu.shares": "512", "memory.limit_in_bytes": "67108864", "pids.max": "10"}, v1.settings(l)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]string{"cpu.weight": "50", "memory.max": "67108864", "pids.max": "10"}, v2.settings(l)); d != "" {
		t.Error(d)
	}
	if got := v2.settings(Limits{CPU: 1e9})["cpu.weight"]; got != "10000" {
		t.Errorf("weight %s, want the kernel's largest", got)
	}
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "a\nb"} {
		if _, err := NewIn(Layout{}, name); !fault.Is(err, fault.Invalid) {
			t.Errorf("root %q: %v", name, err)
		}
		tree, _ := NewIn(Layout{}, "x")
		if _, err := tree.Create(name, Limits{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("create %q: %v", name, err)
		}
	}
}

func TestHostWithoutControlGroups(t *testing.T) {
	tree, err := NewIn(Layout{Hierarchies: []Hierarchy{{Path: t.TempDir() + "/absent", V2: true}}}, "hayloft-test")
	if err != nil {
		t.Fatal(err)
	}
	if tree.Available() {
		t.Error("available without a hierarchy")
	}
	if _, err := tree.Create("a", Limits{}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("create: %v, want unsupported", err)
	}
}

// TestLife walks a group through its life on the host's own hierarchies: a shell that forks at once is in
// it with its child, everything dies, nothing is left.
func TestLife(t *testing.T) {
	labtest.Root(t, "sh", "sleep")
	ctx := context.Background()
	tree, err := New(fmt.Sprintf("hayloft-cgrouptest-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if !tree.Available() {
		t.Fatal("root, but no writable control group")
	}
	t.Cleanup(func() {
		if err := tree.Remove(); err != nil {
			t.Error(err)
		}
	})
	g, err := tree.Create("one-1", Limits{CPU: 0.5, MemoryMB: 64, PIDs: 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Kill(); _ = g.Remove(ctx) })

	cmd := exec.Command("sh", "-c", "sleep 1000 & echo; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := g.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v", time.Since(begun))
	if _, err := out.Read(make([]byte, 1)); err != nil { // the shell has forked
		t.Fatal(err)
	}
	pids, err := g.Procs()
	if err != nil || len(pids) != 2 || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("processes %v, %v; want the shell %d and its child", pids, err, cmd.Process.Pid)
	}
	member, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if got := strings.Count(string(member), tree.Root()+"/one-1"); got != len(tree.hierarchies) {
		t.Errorf("in %d of %d hierarchies:\n%s", got, len(tree.hierarchies), member)
	}
	for _, pid := range pids {
		if pid == os.Getpid() {
			t.Error("the test itself is in the group")
		}
	}
	for _, d := range g.dirs { // what a guest may do to its own part
		if !d.hierarchy.V2 {
			continue
		}
		inner := filepath.Join(d.path, "threads")
		if err := errors.Join(os.Mkdir(inner, 0o755), write(inner, "cgroup.type", "threaded")); err != nil {
			t.Fatal(err)
		}
		if again, err := g.Procs(); err != nil || !slices.Equal(again, pids) {
			t.Errorf("with a group of threads inside: %v, %v; want %v", again, err, pids)
		}
	}
	if names, err := tree.List(); err != nil || !slices.Equal(names, []string{"one-1"}) {
		t.Errorf("list %v, %v", names, err)
	}
	if u, err := g.Usage(); err != nil || u.CPUSeconds <= 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if err := tree.Remove(); !fault.Is(err, fault.Busy) {
		t.Errorf("removing a root in use: %v, want busy", err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := g.Remove(short); !fault.Is(err, fault.Busy) {
		t.Errorf("removing a group in use: %v, want busy", err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Open("one-1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("open after removal: %v", err)
	}
	if err := g.Remove(ctx); err != nil {
		t.Errorf("second removal: %v", err)
	}
}
