package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/undo"
)

// used are the controllers a group is made in. cpuacct exists on v1 only.
var used = []string{"cpu", "cpuacct", "memory", "pids"}

// Tree is the part of the host's control groups below one root, e.g. "hayloft-one". All methods are
// safe for concurrent use on different groups.
type Tree struct {
	root        string
	hierarchies []Hierarchy // writable ones with a controller we use, and cgroup2 in any case
}

// Limits bound a group. The zero value limits nothing. A limit whose controller the host lacks is not applied.
type Limits struct {
	CPU      float64 // relative weight: 1 is what a group gets by default
	MemoryMB int     // hard limit in MiB, 0 for none
	PIDs     int     // number of processes and threads, 0 for none
}

// New returns the tree below root in every writable hierarchy of the host; nothing is created yet. A host
// without writable control groups gives a tree that is not Available. fault.Invalid for a bad root.
func New(root string) (*Tree, error) {
	layout, err := Detect()
	if err != nil {
		return nil, err
	}
	return NewIn(layout, root)
}

// NewIn is New in a known layout.
func NewIn(layout Layout, root string) (*Tree, error) {
	if err := checkName(root); err != nil {
		return nil, err
	}
	t := &Tree{root: root}
	for _, h := range layout.Hierarchies {
		wanted := h.V2 || slices.ContainsFunc(h.Controllers, func(c string) bool { return slices.Contains(used, c) })
		if wanted && unix.Access(h.Path, unix.W_OK) == nil {
			t.hierarchies = append(t.hierarchies, h)
		}
	}
	return t, nil
}

// Available reports whether groups can be made at all.
func (t *Tree) Available() bool { return len(t.hierarchies) > 0 }

// Root is the name given to New.
func (t *Tree) Root() string { return t.root }

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\n\x00") {
		return fault.Errorf(fault.Invalid, "cgroup name %q: not a single path element", name)
	}
	return nil
}

// Create makes the group name, or takes the one that is there, and sets its limits. fault.Unsupported
// where the tree is not Available. On error nothing new is left.
func (t *Tree) Create(name string, l Limits) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if !t.Available() {
		return nil, fault.Errorf(fault.Unsupported, "cgroup %s: no writable control groups on this host", name)
	}
	var made undo.Stack
	defer made.Run()
	g := t.group(name)
	for _, h := range t.hierarchies {
		root := filepath.Join(h.Path, t.root)
		if err := mkdir(root, &made); err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", name, err)
		}
		if h.V2 {
			enable(h.Path, h.Controllers)
			enable(root, h.Controllers)
		}
		if err := mkdir(filepath.Join(root, name), &made); err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", name, err)
		}
	}
	if err := g.SetLimits(l); err != nil {
		return nil, err
	}
	made.Keep()
	return g, nil
}

func mkdir(path string, made *undo.Stack) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		made.Push(func() error { return os.Remove(path) })
	}
	return err
}

// enable hands the controllers we use to the children of a cgroup2 directory. It may be refused (processes in
// dir, not delegated): the group then still holds processes, without that limit.
func enable(dir string, controllers []string) {
	for _, c := range controllers {
		if slices.Contains(used, c) {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
		}
	}
}

// Open returns the group name, fault.NotFound when no hierarchy has it.
func (t *Tree) Open(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	g := t.group(name)
	for _, d := range g.dirs {
		if _, err := os.Stat(d.path); err == nil {
			return g, nil
		}
	}
	return nil, fault.Errorf(fault.NotFound, "cgroup %s does not exist", name)
}

// List returns the names of all groups of the tree, sorted.
func (t *Tree) List() ([]string, error) {
	var names []string
	for _, h := range t.hierarchies {
		entries, err := os.ReadDir(filepath.Join(h.Path, t.root))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cgroups of %s: %w", t.root, err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Remove deletes the root itself once it holds no groups any more; fault.Busy when it does. Removing
// what is gone is success.
func (t *Tree) Remove() error {
	var errs []error
	for _, h := range t.hierarchies {
		err := os.Remove(filepath.Join(h.Path, t.root))
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
			err = fault.As(fault.Busy, err)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("cgroup %s: %w", t.root, err))
		}
	}
	return errors.Join(errs...)
}

func (t *Tree) group(name string) *Group {
	g := &Group{name: name}
	for _, h := range t.hierarchies {
		g.dirs = append(g.dirs, directory{path: filepath.Join(h.Path, t.root, name), hierarchy: h})
	}
	return g
}

// SetLimits changes the limits of the group.
func (g *Group) SetLimits(l Limits) error {
	for _, d := range g.dirs {
		for file, value := range d.settings(l) {
			path := filepath.Join(d.path, file)
			err := os.WriteFile(path, []byte(value), 0)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) && !exists(path) {
				continue // controller not enabled here
			}
			if err != nil {
				return fmt.Errorf("cgroup %s: %s = %s: %w", g.name, file, value, err)
			}
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (d directory) settings(l Limits) map[string]string {
	out := map[string]string{}
	for _, c := range d.hierarchy.Controllers {
		switch {
		case c == "cpu" && l.CPU > 0 && d.hierarchy.V2:
			out["cpu.weight"] = strconv.Itoa(clamp(l.CPU*100, 1, 10000))
		case c == "cpu" && l.CPU > 0:
			out["cpu.shares"] = strconv.Itoa(clamp(l.CPU*1024, 2, 262144))
		case c == "memory" && l.MemoryMB > 0 && d.hierarchy.V2:
			out["memory.max"] = strconv.Itoa(l.MemoryMB << 20)
		case c == "memory" && l.MemoryMB > 0:
			out["memory.limit_in_bytes"] = strconv.Itoa(l.MemoryMB << 20)
		case c == "pids" && l.PIDs > 0:
			out["pids.max"] = strconv.Itoa(l.PIDs)
		}
	}
	return out
}

func clamp(v, low, high float64) int { return int(math.Round(min(max(v, low), high))) }
