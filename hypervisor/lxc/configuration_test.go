package lxc

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hayloft/cloud/fault"
	"hayloft/disk/device"
	"hayloft/hypervisor"
)

func sound() hypervisor.Machine {
	return hypervisor.Machine{
		ID: 7, Name: "web 1", CPU: 1, MemoryMB: 64, Dir: "/var/lib/hayloft/vms/7", Context: "/var/lib/hayloft/vms/7/context",
		Disks: []hypervisor.Disk{{Device: device.Device{Kind: device.Directory, Lower: "/l", Upper: "/u", Work: "/w"}}},
		NICs:  []hypervisor.NIC{{MAC: "02:00:0a:00:00:01", Bridge: "br0", Port: "one-7-0", IP: "10.0.0.2/24", Gateway: "10.0.0.1", MTU: 1400}},
	}
}

func TestCheckNamesThePart(t *testing.T) {
	for _, row := range []struct {
		part   string
		class  fault.Class
		change func(*hypervisor.Machine)
	}{
		{"restore", fault.Unsupported, func(m *hypervisor.Machine) { m.Restore = "/saved" }},
		{"graphics", fault.Invalid, func(m *hypervisor.Machine) { m.Graphics = &hypervisor.Graphics{Type: "vnc"} }},
		{"boot", fault.Invalid, func(m *hypervisor.Machine) { m.Boot.Kernel = "/vmlinuz" }},
		{"memory", fault.Invalid, func(m *hypervisor.Machine) { m.MemoryMB = -1 }},
		{"raw data", fault.Invalid, func(m *hypervisor.Machine) { m.Raw = "lxc.x = \x00" }},
		{"directory", fault.Invalid, func(m *hypervisor.Machine) { m.Dir = "vms/7" }},
		{"directory", fault.Invalid, func(m *hypervisor.Machine) { m.Dir = "/vms/7\nlxc.hook.pre-start = /bin/sh" }},
		{"directory", fault.Invalid, func(m *hypervisor.Machine) { m.Dir = "/vms/$(reboot)" }},
		{"context", fault.Invalid, func(m *hypervisor.Machine) { m.Context = "/a b" }},
		{"disks", fault.Invalid, func(m *hypervisor.Machine) { m.Disks = nil }},
		{"disks", fault.Invalid, func(m *hypervisor.Machine) { m.Disks = append(m.Disks, m.Disks[0]) }},
		{"disk 0", fault.Invalid, func(m *hypervisor.Machine) { m.Disks[0].Device.Kind = device.NBD }},
		{"disk 0", fault.Invalid, func(m *hypervisor.Machine) { m.Disks[0].Device.Lower = "/l:/etc" }},
		{"disk 0", fault.Invalid, func(m *hypervisor.Machine) { m.Disks[0].Device.Upper = "/u,lowerdir=/etc" }},
		{"disk 0", fault.Invalid, func(m *hypervisor.Machine) { m.Disks[0].Device.Work = "/w/../x" }},
		{"bridge", fault.Invalid, func(m *hypervisor.Machine) { m.NICs[0].Bridge = "br0\nlxc.x = y" }},
		{"port", fault.Invalid, func(m *hypervisor.Machine) { m.NICs[0].Port = "a-name-that-is-too-long" }},
		{"MAC", fault.Invalid, func(m *hypervisor.Machine) { m.NICs[0].MAC = "02:00" }},
		{"IP", fault.Invalid, func(m *hypervisor.Machine) { m.NICs[0].IP = "10.0.0.2" }},
		{"gateway", fault.Invalid, func(m *hypervisor.Machine) { m.NICs[0].Gateway = "fe80::1" }},
		{"MTU", fault.Invalid, func(m *hypervisor.Machine) { m.NICs[0].MTU = 70000 }},
	} {
		m := sound()
		row.change(&m)
		if err := check(m); !fault.Is(err, row.class) || !strings.Contains(err.Error(), row.part) {
			t.Errorf("%v; want class %v, naming %q", err, row.class, row.part)
		}
	}
	if err := check(sound()); err != nil {
		t.Error(err)
	}
}

func TestConfiguration(t *testing.T) {
	m := sound()
	m.Raw = "lxc.init.cmd = /sbin/other"
	text := configuration(m, "hayloft")
	for _, line := range []string{
		"lxc.uts.name = web-1",
		"lxc.rootfs.path = dir:/var/lib/hayloft/vms/7/lxc/rootfs",
		"lxc.cgroup.dir.container = hayloft/vm-7/guest", "lxc.cgroup.dir.monitor.pivot = hayloft/vm-7/end",
		"lxc.mount.entry = /var/lib/hayloft/vms/7/context context none bind,ro,create=dir 0 0",
		"lxc.net.0.type = veth", "lxc.net.0.name = eth0", "lxc.net.0.veth.pair = one-7-0", "lxc.net.0.link = br0",
		"lxc.net.0.hwaddr = 02:00:0a:00:00:01", "lxc.net.0.ipv4.address = 10.0.0.2/24", "lxc.net.0.ipv4.gateway = 10.0.0.1",
		"lxc.net.0.mtu = 1400", "lxc.net.0.flags = up", "lxc.cap.drop = " + dropped, "lxc.init.cmd = /sbin/other",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
	m.NICs = nil
	if text := configuration(m, "hayloft"); !strings.Contains(text, "lxc.net.0.type = empty\n") {
		t.Errorf("a machine without NIC has a network:\n%s", text)
	}
}

// Whatever strings a machine is made of: refused, or exactly the lines that the driver wrote.
func TestNothingInjectsALine(t *testing.T) {
	lines := strings.Count(configuration(sound(), "hayloft"), "\n")
	hostile := rapid.OneOf(rapid.String(), rapid.StringMatching(`/[a-z]{1,5}[\n\r\\ ,:#="]?(lxc.hook = x)?`), rapid.Just("br0\nlxc.x = y"))
	rapid.Check(t, func(t *rapid.T) {
		m := sound()
		fields := []*string{
			&m.Name, &m.UUID, &m.Dir, &m.Context, &m.NICs[0].MAC, &m.NICs[0].Bridge, &m.NICs[0].Port, &m.NICs[0].IP,
			&m.NICs[0].Gateway, &m.NICs[0].Model, &m.Disks[0].Device.Lower, &m.Disks[0].Device.Upper, &m.Disks[0].Device.Work,
		}
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			*fields[rapid.IntRange(0, len(fields)-1).Draw(t, "field")] = hostile.Draw(t, "value")
		}
		if m.Context == "" || m.NICs[0].IP == "" || m.NICs[0].Gateway == "" || check(m) != nil {
			return
		}
		text := configuration(m, "hayloft")
		if strings.Count(text, "\n") != lines || strings.ContainsAny(text, "\r\x00") {
			t.Fatalf("%+v gives\n%s", m, text)
		}
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "lxc.") {
				t.Fatalf("line %q", line)
			}
		}
	})
}

func TestHostName(t *testing.T) {
	for name, want := range map[string]string{
		"web-1": "web-1", "web 1": "web-1", "": "vm-7", "äö": "vm-7", "a\nb": "a-b", "-x.": "x", strings.Repeat("n", 80): strings.Repeat("n", 63),
	} {
		if got := hostName(hypervisor.Machine{ID: 7, Name: name}); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
	}
}

func TestVerdict(t *testing.T) {
	const (
		boot     = "lxc-start vm-7 20261120070444.804 NOTICE   start - ../src/lxc/start.c:post_start:2205 - Started \"/sbin/init\" with pid \"23161\"\n"
		signal   = "lxc-start vm-7 20261120070456.622 INFO     error - ../src/lxc/error.c:lxc_error_set_and_log:34 - Child <23161> ended on signal "
		status   = "lxc-start vm-7 20261120070456.622 INFO     error - ../src/lxc/error.c:lxc_error_set_and_log:31 - Child <23161> ended on error (3)\n"
		takeDown = "lxc-start vm-7 20261120070456.622 INFO     utils - ../src/lxc/utils.c:run_script_argv:590 - Executing script \"/bin/true\" for container \"vm-7\"\n"
	)
	for _, row := range []struct {
		name, log string
		status    hypervisor.Status
		reason    string
	}{
		{"nothing", "", hypervisor.Crashed, "monitor"},
		{"monitor killed", boot, hypervisor.Crashed, "monitor"},
		{"powered off", boot + signal + "Interrupt(2)\n" + takeDown, hypervisor.Off, "powered off"},
		{"process 1 killed", boot + signal + "Killed(9)\n" + takeDown, hypervisor.Crashed, "signal 9 (Killed)"},
		{"process 1 failed", boot + status + takeDown, hypervisor.Crashed, "status 3"},
		{"process 1 returned", boot + takeDown, hypervisor.Off, "process 1 ended"},
		{"rebooted, then off", boot + signal + "Hangup(1)\n" + takeDown + boot + signal + "Interrupt(2)\n", hypervisor.Off, "powered off"},
		{"rebooted, then monitor killed", boot + signal + "Hangup(1)\n" + boot, hypervisor.Crashed, "monitor"},
		{"never came back", boot + signal + "Hangup(1)\n", hypervisor.Crashed, "reboot"},
	} {
		if status, reason := verdict(row.log); status != row.status || !strings.Contains(reason, row.reason) {
			t.Errorf("%s: %s, %q; want %s, %q", row.name, status, reason, row.status, row.reason)
		}
	}
}
