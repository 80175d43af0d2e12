package fuse

import (
	"os"
	"strconv"
	"strings"
)

// mounted is a line of /proc/self/mountinfo (proc(5)).
type mounted struct {
	root, point    string
	fsType, source string
	private        bool // gets and gives no events
}

func parseMountinfo(text string) []mounted {
	var all []mounted
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		a, b := strings.Fields(left), strings.Fields(right)
		if !ok || len(a) < 6 || len(b) < 1 {
			continue
		}
		m := mounted{root: unescape(a[3]), point: unescape(a[4]), fsType: b[0], private: true}
		if len(b) > 1 {
			m.source = unescape(b[1])
		}
		for _, tag := range a[6:] {
			if strings.HasPrefix(tag, "shared:") {
				m.private = false
			}
		}
		all = append(all, m)
	}
	return all
}

// unescape turns \040 and the like into what they stand for.
func unescape(s string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 || len(s) < i+4 {
			return b.String() + s
		}
		n, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			b.WriteString(s[:i+1])
			s = s[i+1:]
			continue
		}
		b.WriteString(s[:i])
		b.WriteByte(byte(n))
		s = s[i+4:]
	}
}

func readMountinfo() ([]mounted, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	return parseMountinfo(string(text)), err
}

// mountsAt gives what is mounted at dir itself, the last on top.
func mountsAt(dir string) ([]mounted, error) {
	all, err := readMountinfo()
	var here []mounted
	for _, m := range all {
		if m.point == dir {
			here = append(here, m)
		}
	}
	return here, err
}

// isShared tells whether the mount that dir is part of gives events to other namespaces.
func isShared(dir string) (bool, error) {
	all, err := readMountinfo()
	var best mounted
	for _, m := range all { // the last of the longest is on top
		if (m.point == dir || m.point == "/" || strings.HasPrefix(dir, m.point+"/")) && len(m.point) >= len(best.point) {
			best = m
		}
	}
	return best.point != "" && !best.private, err
}
