package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check is one kind of thing that was looked for after a run, and what was found of it.
type Check struct {
	What string
	Left []string
}

// Found lists everything that the checks found.
func Found(checks []Check) []string {
	var all []string
	for _, c := range checks {
		for _, left := range c.Left {
			all = append(all, c.What+": "+left)
		}
	}
	return all
}

// snapshot is what was there before a run, of the kinds of things that need not bear its name. The zero value
// is no snapshot.
type snapshot struct {
	taken  bool
	links  map[string]bool
	tables map[string]bool
}

// look takes the snapshot in the network namespace of this process.
func look() (snapshot, error) {
	s := snapshot{taken: true, links: map[string]bool{}, tables: map[string]bool{}}
	links, err := allLinks()
	if err != nil {
		return s, err
	}
	for _, l := range links {
		s.links[linkKey(l)] = true
	}
	tables, err := ruleTables()
	for _, t := range tables {
		s.tables[t] = true
	}
	return s, err
}

// allLinks lists every link, again when the list changed while it was read: others make links too.
func allLinks() ([]netlink.Link, error) {
	for end := time.Now().Add(settle); ; {
		links, err := netlink.LinkList()
		if err == nil {
			return links, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) || time.Now().After(end) {
			return nil, fmt.Errorf("links: %w", err)
		}
	}
}

func linkKey(l netlink.Link) string { return fmt.Sprint(l.Attrs().Index, " ", l.Attrs().Name) }

func ruleTables() ([]string, error) {
	tables, err := (&nftables.Conn{}).ListTables()
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil // a kernel without nftables has no tables
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var names []string
	for _, t := range tables {
		names = append(names, fmt.Sprintf("table %s of family %d", t.Name, t.Family))
	}
	return names, nil
}

// Leftovers looks for everything of the site that is still there after Close.
func (s *Site) Leftovers() ([]Check, error) { return leftovers(s.before, s.record) }

// settle is how long what ends by itself, as the last references to a namespace, is waited for.
const settle = 2 * time.Minute

func leftovers(before snapshot, r record) ([]Check, error) {
	for end := time.Now().Add(settle); ; {
		checks, err := leftoversNow(before, r)
		if err != nil || len(Found(checks)) == 0 || time.Now().After(end) {
			return checks, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func leftoversNow(before snapshot, r record) ([]Check, error) {
	var checks []Check
	var errs []error
	add := func(what string, find func() ([]string, error)) {
		left, err := find()
		if err != nil {
			errs = append(errs, fmt.Errorf("looking for %s: %w", what, err))
		}
		checks = append(checks, Check{what, left})
	}
	add("processes", func() ([]string, error) { return r.leftProcesses(), nil })
	add("taps, bridges and other links", func() ([]string, error) { return leftLinks(before, r.Name) })
	add("packet filter rules", func() ([]string, error) { return leftTables(before, r.Name) })
	add("mounts", func() ([]string, error) { return leftMounts(r.Name) })
	add("loop devices", func() ([]string, error) { return leftLoops(r.Name), nil })
	add("control groups", func() ([]string, error) { return leftGroups(r.Name) })
	add("sockets", func() ([]string, error) { return leftSockets(r.Name) })
	add("files, network namespaces among them", func() ([]string, error) { return leftFiles(r), nil })
	return checks, errors.Join(errs...)
}

// leftProcesses are those in the namespace, and those that bear the run's name in their command line, their
// environment or their control groups.
func (r record) leftProcesses() []string {
	own := map[int]bool{}
	for _, pid := range lineage() {
		own[pid] = true
	}
	var left []string
	for _, p := range processes() {
		if own[p.pid] {
			continue
		}
		marked := r.Inode != 0 && p.netns == r.Inode || strings.Contains(p.line, r.Name)
		groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
		environment, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
		marked = marked || strings.Contains(string(groups), r.Name) || bears(string(environment), r.Name)
		if marked {
			left = append(left, p.String())
		}
	}
	return left
}

// bears reports whether an environment holds the name, other than where a person who looks around has it: in
// the endpoint that the demo tells to export, and in the working directory.
func bears(environment, name string) bool {
	for entry := range strings.SplitSeq(environment, "\x00") {
		variable, value, _ := strings.Cut(entry, "=")
		switch variable {
		case "HAYLOFT_ENDPOINT", "PWD", "OLDPWD", "_":
			continue
		}
		if strings.Contains(value, name) {
			return true
		}
	}
	return false
}

// leftLinks are links of the machine's own network that bear the name, and bridges, taps and veths that are new.
func leftLinks(before snapshot, name string) ([]string, error) {
	links, err := allLinks()
	if err != nil {
		return nil, err
	}
	var left []string
	for _, l := range links {
		fresh := before.taken && !before.links[linkKey(l)]
		virtual := l.Type() == "bridge" || l.Type() == "tuntap" || l.Type() == "veth"
		if strings.Contains(l.Attrs().Alias, name) || fresh && virtual {
			left = append(left, l.Type()+" "+l.Attrs().Name)
		}
	}
	return left, nil
}

func leftTables(before snapshot, name string) ([]string, error) {
	tables, err := ruleTables()
	var left []string
	for _, t := range tables {
		if strings.Contains(t, name) || before.taken && !before.tables[t] {
			left = append(left, t)
		}
	}
	return left, err
}

func leftMounts(name string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	var left []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, name) {
			left = append(left, strings.TrimSpace(line))
		}
	}
	return left, err
}

func leftLoops(name string) []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var left []string
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), name) {
			left = append(left, strings.TrimSpace(strings.Split(file, "/")[3]+" of "+string(text)))
		}
	}
	return left
}

// leftGroups looks through every hierarchy, cgroup2 also where the host does not mount it.
func leftGroups(name string) ([]string, error) {
	var left []string
	walk := func(root string) error {
		return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				if path == root {
					return err
				}
				return nil // it went away
			}
			if !e.IsDir() {
				return nil
			}
			if strings.Contains(e.Name(), name) {
				left = append(left, path)
				return fs.SkipDir
			}
			return nil
		})
	}
	if _, err := os.Stat("/sys/fs/cgroup"); err != nil {
		return nil, nil
	}
	if err := walk("/sys/fs/cgroup"); err != nil {
		return left, err
	}
	return left, onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
			return nil // a kernel without it
		}
		return walk("/sys/fs/cgroup")
	})
}

func leftSockets(name string) ([]string, error) {
	text, err := os.ReadFile("/proc/net/unix")
	var left []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, name) {
			left = append(left, strings.TrimSpace(line))
		}
	}
	return left, err
}

// leftDepth is how deep below its roots leftFiles looks.
const leftDepth = 4

// leftFiles looks where runs and the programs they use put things. It stays out of what others have mounted there:
// that may not answer.
func leftFiles(r record) []string {
	var left []string
	foreign := map[string]bool{}
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && !strings.Contains(fields[4], r.Name) {
			foreign[fields[4]] = true
		}
	}
	if _, err := os.Lstat(r.Dir); err == nil && filepath.Dir(r.Dir) != os.TempDir() {
		left = append(left, r.Dir)
	}
	for _, root := range []string{"/run", os.TempDir(), "/dev/shm", "/var/lib/lxc", "/var/log/lxc", "/var/lib/hayloft"} {
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			if strings.Contains(e.Name(), r.Name) {
				left = append(left, path)
			} else if path != root && foreign[path] {
				return fs.SkipDir
			} else if strings.Count(path, "/")-strings.Count(root, "/") < leftDepth {
				return nil
			}
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		})
	}
	return left
}
