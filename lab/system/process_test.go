package system

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machineOf finds a machine's number in its process's arguments: the directory of its files.
var machineOf = regexp.MustCompile(`/machines/([0-9]+)/`)

// qemus are the QEMU processes of the product, by machine; a machine with two has two entries.
func (p *product) qemus() map[int][]int {
	found := map[int][]int{}
	for _, pid := range p.processes("qemu-system") {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if at := machineOf.FindSubmatch(line); at != nil {
			id, _ := strconv.Atoi(string(at[1]))
			found[id] = append(found[id], pid)
		}
	}
	return found
}

// processes are those of programs so called in the product's network namespace.
func (p *product) processes(name string) []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var pids []int
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(line) == 0 {
			continue
		}
		program := filepath.Base(string(bytes.SplitN(line, []byte{0}, 2)[0]))
		var st unix.Stat_t
		if !strings.HasPrefix(program, name) || unix.Stat(dir+"/ns/net", &st) != nil || st.Ino != p.site.Namespace.Inode {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// machineDirs are the machines that have files on the host.
func (p *product) machineDirs() []string {
	found, _ := filepath.Glob(filepath.Join(p.agentDir(), "machines", "*"))
	return found
}
