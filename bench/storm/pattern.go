package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hayloft/cloud"
	"hayloft/image/contextdisk"
	"hayloft/internal/command"
	"hayloft/lab/fleet"
)

// pattern is how Hayloft started one machine: what must be known to start its like without Hayloft.
type pattern struct {
	fleet    string // name, which is in its paths
	vm       cloud.VM
	args     []string // of QEMU, the program first
	uid, gid int
	config   string // of the container
	store    string // directory with the bases of the host's local store
}

const (
	agentDir = "state/agent" // below a run's directory
	storeDir = agentDir + "/store"
)

func machineDir(id int) string { return filepath.Join(agentDir, "machines", strconv.Itoa(id)) }

func takePattern(ctx context.Context, f *fleet.Fleet, m fleet.Machine, dir string) (*pattern, error) {
	p := &pattern{fleet: f.Name, vm: m.VM.VM, store: filepath.Join(dir, "store")}
	if len(m.NICs) != 1 || len(m.Disks) != 1 {
		return nil, fmt.Errorf("it has %d NICs and %d disks, want 1 of each", len(m.NICs), len(m.Disks))
	}
	var err error
	if m.Container() {
		var text []byte
		text, err = os.ReadFile(filepath.Join(f.Dir, machineDir(m.ID), "lxc/config"))
		p.config = string(text)
	} else {
		err = p.readProcess(f, m)
	}
	if err != nil {
		return nil, err
	}
	_, err = command.Exec{}.Run(ctx, command.Cmd{Name: "cp", Args: []string{"-a", filepath.Join(f.Dir, storeDir), p.store}})
	return p, err
}

func (p *pattern) readProcess(f *fleet.Fleet, m fleet.Machine) error {
	for _, pid := range f.QEMUs() {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return err
		}
		args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		if !strings.Contains(string(line), filepath.Join(f.Dir, machineDir(m.ID))+"/") {
			continue
		}
		p.args = args
		p.uid, p.gid, err = owner(pid)
		return err
	}
	return errors.New("its process was not found")
}

func owner(pid int) (uid, gid int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Uid:" {
			uid, _ = strconv.Atoi(fields[1])
		} else if len(fields) > 1 && fields[0] == "Gid:" {
			gid, _ = strconv.Atoi(fields[1])
		}
	}
	return uid, gid, err
}

// twin is a machine of the floor, like the pattern's.
type twin struct {
	id       int
	name     string
	ip       string
	mac      string
	uid, gid int
	dir      string
	change   *strings.Replacer // makes texts about the pattern's machine texts about this one
}

func (p *pattern) twin(s *fleet.Site, i int) twin {
	nic := p.vm.NICs[0]
	t := twin{id: i, name: fmt.Sprintf("floor-%d", i), ip: fmt.Sprintf("10.66.0.%d", 10+i), mac: fmt.Sprintf("02:00:0a:42:00:%02x", 10+i),
		uid: p.uid - p.vm.ID + i, gid: p.gid, dir: filepath.Join(s.Dir, machineDir(i))}
	was := strconv.Itoa(p.vm.ID)
	is := strconv.Itoa(i)
	t.change = strings.NewReplacer(
		p.fleet, s.Name, // also in the paths
		"/machines/"+was+"/", "/machines/"+is+"/",
		p.vm.Name, t.name,
		p.vm.OS.UUID, uuid(),
		strings.ToLower(nic.MAC), t.mac, strings.ToUpper(nic.MAC), strings.ToUpper(t.mac),
		nic.IP, t.ip,
		"vm-"+was+"/", "vm-"+is+"/",
		"one-"+was+"-", "one-"+is+"-",
	)
	return t
}

func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// context is the twin's context.sh.
func (p *pattern) context(t twin, key string) (map[string][]byte, error) {
	variables := map[string]string{}
	for name, value := range p.vm.Context {
		variables[name] = t.change.Replace(value)
	}
	variables["VMID"], variables["SSH_PUBLIC_KEY"] = strconv.Itoa(t.id), key
	text, err := contextdisk.Render(variables)
	return map[string][]byte{contextdisk.ScriptName: text}, err
}
