package system

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machineOf finds a machine's number in its process's arguments: the directory of its files.
var machineOf = regexp.MustCompile(`/machines/([0-9]+)[/ ]`)

// qemus are the QEMU processes of the product, by machine; a machine with two has two entries.
func (p *product) qemus() map[int][]int {
	return p.machines(func(program string) bool { return strings.HasPrefix(filepath.Base(program), "qemu-system") })
}

// monitors are the processes that look after containers, by machine.
func (p *product) monitors() map[int][]int {
	return p.machines(func(title string) bool { return strings.HasPrefix(title, "[lxc monitor]") })
}

// machines are the processes in the product's network namespace whose first argument is one of those wanted.
func (p *product) machines(wanted func(string) bool) map[int][]int {
	found := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(line) == 0 {
			continue
		}
		var st unix.Stat_t
		at := machineOf.FindSubmatch(line)
		if first, _, _ := bytes.Cut(line, []byte{0}); at == nil || !wanted(string(first)) {
			continue
		}
		if unix.Stat(dir+"/ns/net", &st) != nil || st.Ino != p.site.Namespace.Inode {
			continue
		}
		id, _ := strconv.Atoi(string(at[1]))
		pid, _ := strconv.Atoi(filepath.Base(dir))
		found[id] = append(found[id], pid)
	}
	return found
}

// machineDirs are the machines that have files on the host.
func (p *product) machineDirs() []string {
	found, _ := filepath.Glob(filepath.Join(p.agentDir(), "machines", "*"))
	return found
}
