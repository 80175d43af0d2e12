package lxc

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"hayloft/hypervisor"
)

// dropped are the capabilities no container gets: those that reach the host's kernel, clock or hardware.
const dropped = "mac_admin mac_override sys_time sys_module sys_rawio syslog wake_alarm"

// devices are those a container may use (lxc's own common.conf), as rules of the cgroup2 device filter.
var devices = []string{
	"c *:* m", "b *:* m", // making nodes is harmless, opening them is what is filtered
	"c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", // null zero full random urandom
	"c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm", // tty console ptmx pts
}

const (
	seccompProfile  = "/usr/share/lxc/config/common.seccomp"
	postStop        = "/bin/true" // its line in the log says that the container was taken down in order
	truncate        = "/usr/bin/truncate"
	consoleLogBytes = 1 << 20
)

// paths of one container, all below the machine's own directory.
type paths struct{ dir string }

func pathsOf(m hypervisor.Machine) paths      { return paths{filepath.Join(m.Dir, "lxc")} }
func (p paths) configuration() string         { return filepath.Join(p.dir, "config") }
func (p paths) root() string                  { return filepath.Join(p.dir, "rootfs") }
func (p paths) log() string                   { return filepath.Join(p.dir, "log") }
func (p paths) stderr() string                { return filepath.Join(p.dir, "stderr") }
func (p paths) pid() string                   { return filepath.Join(p.dir, "pid") }
func (p paths) consoleLog() string            { return filepath.Join(p.dir, "console.log") }
func (p paths) olderConsoleLog() string       { return p.consoleLog() + ".1" }
func containerName(id int) string             { return "vm-" + strconv.Itoa(id) }
func guestGroup(tree string, id int) string   { return tree + "/" + containerName(id) + "/guest" }
func monitorGroup(tree string, id int) string { return tree + "/" + containerName(id) + "/monitor" }
func pivotGroup(tree string, id int) string   { return tree + "/" + containerName(id) + "/end" }

// configuration is the container's file for lxc-start, as in lxc.container.conf(5). The machine has
// passed check.
func configuration(m hypervisor.Machine, tree string) string {
	p := pathsOf(m)
	var b strings.Builder
	set := func(key, format string, args ...any) { fmt.Fprintf(&b, "lxc."+key+" = "+format+"\n", args...) }
	set("uts.name", "%s", hostName(m))
	set("rootfs.path", "dir:%s", p.root())
	set("log.file", "%s", p.log())
	set("log.level", "INFO") // the level at which the end of process 1 is written
	set("console.logfile", "%s", p.consoleLog())
	set("console.size", "%d", consoleLogBytes)
	set("console.rotate", "1")
	set("hook.version", "1") // hooks get no arguments but their own
	// At each boot: a guest that reboots for ever must not fill the host's disk.
	set("hook.pre-start", truncate+" --no-create --size 0 %s", p.log())
	set("hook.post-stop", "%s", postStop)
	set("monitor.signal.pdeath", "SIGKILL")
	set("autodev", "1")
	set("tty.max", "0")
	set("pty.max", "1024")
	set("mount.auto", "proc:mixed sys:ro cgroup:mixed")
	set("cap.drop", "%s", dropped)
	set("cgroup.dir.monitor", "%s", monitorGroup(tree, m.ID))
	set("cgroup.dir.container", "%s", guestGroup(tree, m.ID))
	// Where a monitor goes that clears up: elsewhere it would not be found before its end.
	set("cgroup.dir.monitor.pivot", "%s", pivotGroup(tree, m.ID))
	set("cgroup2.devices.deny", "a")
	for _, rule := range devices {
		set("cgroup2.devices.allow", "%s", rule)
	}
	if _, err := os.Stat(seccompProfile); err == nil {
		set("seccomp.profile", "%s", seccompProfile)
	}
	if confined() {
		set("apparmor.profile", "generated") // with nesting, as Debian's own default, for systemd's mounts
		set("apparmor.allow_nesting", "1")
	} else {
		set("apparmor.profile", "unconfined")
	}
	if m.Context != "" {
		set("mount.entry", "%s context none bind,ro,create=dir 0 0", m.Context)
	}
	if len(m.NICs) == 0 {
		set("net.0.type", "empty")
	}
	for i, n := range m.NICs {
		nic := func(key, format string, args ...any) { set(fmt.Sprintf("net.%d.%s", i, key), format, args...) }
		nic("type", "veth")
		nic("name", "eth%d", i)
		nic("veth.pair", "%s", n.Port)
		nic("link", "%s", n.Bridge)
		nic("hwaddr", "%s", n.MAC)
		if n.IP != "" {
			nic("ipv4.address", "%s", n.IP)
		}
		if n.Gateway != "" {
			nic("ipv4.gateway", "%s", n.Gateway)
		}
		if n.MTU != 0 {
			nic("mtu", "%d", n.MTU)
		}
		nic("flags", "up")
	}
	if m.Raw != "" {
		b.WriteString(m.Raw)
		b.WriteString("\n")
	}
	return b.String()
}

// confined reports whether AppArmor is on and lxc can load a profile.
func confined() bool {
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	_, parserErr := exec.LookPath("apparmor_parser")
	return err == nil && strings.HasPrefix(string(on), "Y") && parserErr == nil
}

// hostName makes the machine's name into one that a kernel and a resolver accept.
func hostName(m hypervisor.Machine) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		}
		return '-'
	}, m.Name)
	name = strings.Trim(name[:min(len(name), 63)], "-.")
	if name == "" {
		return containerName(m.ID)
	}
	return name
}
