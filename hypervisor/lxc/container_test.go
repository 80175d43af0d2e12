package lxc

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/lab/labtest"
)

// scripted is a machine whose process 1 is the given script instead of the usual one.
func scripted(t *testing.T, id int, script string) hypervisor.Machine {
	t.Helper()
	m := plugged(guest(t, userland(t), id))
	path := filepath.Join(m.Disks[0].Device.Upper, "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	m.Raw = "lxc.init.cmd = /script"
	return m
}

// run starts the machine and has everything taken away at the end of the test.
func run(t *testing.T, m hypervisor.Machine) (*Driver, string) {
	t.Helper()
	stateDir := t.TempDir()
	d := newDriver(t, stateDir)
	t.Cleanup(func() { takeAway(t, d, m) })
	if err := d.Start(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return d, stateDir
}

func takeAway(t *testing.T, d *Driver, m hypervisor.Machine) {
	ctx, cancel := cleanupContext(t.Context())
	defer cancel()
	if err := d.Remove(ctx, m.ID); err != nil {
		t.Error(err)
	}
	d.Close()
	for _, what := range leftovers(t, m) {
		t.Errorf("left behind: %s", what)
	}
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for limit := time.Now().Add(4 * time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not within four minutes: %s", what)
		}
	}
}

func awaitConsole(t *testing.T, d *Driver, id int, text string) {
	t.Helper()
	var log []byte
	defer func() {
		if t.Failed() {
			domains, _ := d.List(context.WithoutCancel(t.Context()))
			t.Logf("domains %+v; console:\n%s", domains, log[max(0, len(log)-2000):])
		}
	}()
	await(t, text+" on the console", func() bool {
		log, _ = d.ConsoleLog(t.Context(), id, 1<<20)
		return strings.Contains(string(log), text)
	})
}

func awaitEnd(t *testing.T, d *Driver, id int) hypervisor.Domain {
	t.Helper()
	var domain hypervisor.Domain
	await(t, "the end", func() bool {
		domains, err := d.List(t.Context())
		if err != nil || len(domains) != 1 || domains[0].ID != id {
			t.Fatalf("list %+v, %v", domains, err)
		}
		domain = domains[0]
		return domain.Status != hypervisor.Running
	})
	return domain
}

func TestHowProcessOneEnds(t *testing.T) {
	for i, row := range []struct {
		script string
		status hypervisor.Status
		reason string
	}{
		{"exit 0", hypervisor.Off, "process 1 ended"},
		{"exit 3", hypervisor.Crashed, "status 3"},
		{"poweroff -f", hypervisor.Off, "powered off"},
	} {
		t.Run(row.script, func(t *testing.T) {
			m := scripted(t, 6000+i, "until [ -e /context/go ]; do sleep 0.1; done\n"+row.script)
			m.Context = t.TempDir()
			d, _ := run(t, m)
			if err := os.WriteFile(filepath.Join(m.Context, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if end := awaitEnd(t, d, m.ID); end.Status != row.status || !strings.Contains(end.Reason, row.reason) {
				t.Errorf("%+v, want %s, %q", end, row.status, row.reason)
			}
		})
	}
}

func TestMonitorKilled(t *testing.T) {
	m := plugged(guest(t, userland(t), 6010))
	d, stateDir := run(t, m)
	monitor, first := processesOf(t, stateDir, m.ID)
	if err := unix.Kill(monitor.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if end := awaitEnd(t, d, m.ID); end.Status != hypervisor.Crashed || !strings.Contains(end.Reason, "monitor") {
		t.Errorf("%+v, want crashed with its monitor", end)
	}
	if first.alive() {
		t.Error("process 1 lives without its monitor")
	}
}

func TestMonitorKilledWhileAway(t *testing.T) {
	m := plugged(guest(t, userland(t), 6011))
	d, stateDir := run(t, m)
	monitor, first := processesOf(t, stateDir, m.ID)
	d.Close()
	if err := unix.Kill(monitor.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	monitor.exits(t.Context(), orderly)
	d = newDriver(t, stateDir)
	defer d.Close()
	if end := awaitEnd(t, d, m.ID); end.Status != hypervisor.Crashed {
		t.Errorf("%+v, want crashed", end)
	}
	if first.alive() {
		t.Error("process 1 lives without its monitor")
	}
}

func TestNetworkAndContext(t *testing.T) {
	m := scripted(t, 6020, `
cat /context/context.sh
echo x >/context/x || echo "context is read-only"
echo "name $(hostname)"
ip addr show dev eth0
until ping -c 1 -W 5 10.99.0.1; do sleep 1; done
echo "network works"
ip route
while :; do sleep 1000; done
`)
	m.Context = t.TempDir()
	if err := os.WriteFile(filepath.Join(m.Context, "context.sh"), []byte("VMID='6020'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, _ := run(t, m)
	for _, text := range []string{
		"VMID='6020'", "context is read-only", "name guest-6020", "mtu 1400", m.NICs[0].MAC, m.NICs[0].IP, "network works",
		"default via 10.99.0.1",
	} {
		awaitConsole(t, d, m.ID, text)
	}
	port, err := netlink.LinkByName(m.NICs[0].Port)
	if err != nil {
		t.Fatal(err)
	}
	if port.Attrs().MTU != 1400 || port.Attrs().MasterIndex == 0 {
		t.Errorf("port has MTU %d, bridge %d", port.Attrs().MTU, port.Attrs().MasterIndex)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), m.Dir) {
		t.Errorf("the running machine shows in the host's mount table (%v)", err)
	}
	info, err := os.Stat(pathsOf(m).configuration())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("configuration: %v, %v; want mode 0600", info, err)
	}
}

func TestLimits(t *testing.T) {
	m := scripted(t, 6030, `
dd if=/dev/zero of=/dev/null bs=200M count=1
echo "dd ended with $?"
echo x >/sys/kernel/mm/ksm/run || echo "sysfs is read-only"
while :; do sleep 1000; done
`)
	d, stateDir := run(t, m)
	awaitConsole(t, d, m.ID, "sysfs is read-only")
	layout, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	want := "dd ended with 0"
	if slices.Contains(layout.Controllers(), "memory") {
		want = "dd ended with 137" // killed: 200 MB do not fit into 64
	} else {
		t.Logf("%s without a memory controller: no limit to see", layout.Mode)
	}
	awaitConsole(t, d, m.ID, want)
	_, first := processesOf(t, stateDir, m.ID)
	groups, err := os.ReadFile("/proc/" + itoa(first.PID) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range layout.Hierarchies {
		for _, c := range h.Controllers {
			if !h.V2 && (c == "memory" || c == "cpu") && !strings.Contains(string(groups), ":"+c+":/"+testTree()+"/"+containerName(m.ID)) {
				t.Errorf("process 1 is outside the machine's %s group:\n%s", c, groups)
			}
		}
	}
	if !strings.Contains(string(groups), "0::/"+guestGroup(testTree(), m.ID)) {
		t.Errorf("process 1 is outside the machine's cgroup2 group:\n%s", groups)
	}
}

func TestDroppedPowers(t *testing.T) {
	m := plugged(guest(t, userland(t), 6035))
	d, stateDir := run(t, m)
	awaitConsole(t, d, m.ID, bootMark)
	_, first := processesOf(t, stateDir, m.ID)
	bounding, err := strconv.ParseUint(statusField(first.PID, "CapBnd"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, capability := range []uint{
		unix.CAP_SYS_MODULE, unix.CAP_SYS_RAWIO, unix.CAP_SYS_TIME, unix.CAP_MAC_ADMIN, unix.CAP_MAC_OVERRIDE, unix.CAP_SYSLOG,
	} {
		if bounding&(1<<capability) != 0 {
			t.Errorf("process 1 may have capability %d", capability)
		}
	}
	if mode := statusField(first.PID, "Seccomp"); mode != "2" {
		t.Errorf("seccomp mode %q, want a filter (2)", mode)
	}
	for _, space := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		own, err := os.Readlink("/proc/self/ns/" + space)
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err := os.Readlink("/proc/" + itoa(first.PID) + "/ns/" + space); err != nil || theirs == own {
			t.Errorf("process 1 shares our %s namespace (%v)", space, err)
		}
	}
}

func TestFailedStartSaysWhy(t *testing.T) {
	labtest.Root(t, "lxc-start", "busybox")
	lower := userland(t)
	for i, row := range []struct {
		change func(*hypervisor.Machine)
		why    string
	}{
		{func(m *hypervisor.Machine) { m.Raw = "lxc.init.cmd = /no/such/init" }, "/no/such/init"},
		{func(m *hypervisor.Machine) { m.NICs[0].Bridge = "br-missing" }, "br-missing"},
		{func(m *hypervisor.Machine) { m.Raw = "lxc.nonsense = 1" }, "nonsense"},
		{func(m *hypervisor.Machine) { m.Disks[0].Device.Lower = "/no/such/tree" }, "/no/such/tree"},
	} {
		d := newDriver(t, t.TempDir())
		m := plugged(guest(t, lower, 6040+i))
		row.change(&m)
		if err := d.Start(t.Context(), m); err == nil || !strings.Contains(err.Error(), row.why) {
			t.Errorf("start: %v, want it to say %q", err, row.why)
		}
		takeAway(t, d, m)
	}
}

func TestAdoptionThaws(t *testing.T) {
	m := plugged(guest(t, userland(t), 6050))
	d, stateDir := run(t, m)
	awaitConsole(t, d, m.ID, bootMark)
	r, err := d.look(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	f := d.freezer(r)
	if err := f.set(true); err != nil {
		t.Fatal(err)
	}
	await(t, "the machine is frozen", f.frozen)
	d.Close()
	d = newDriver(t, stateDir)
	defer d.Close()
	await(t, "an adopted machine goes on", func() bool { return !f.frozen() })
	if err := d.Shutdown(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if end := awaitEnd(t, d, m.ID); end.Status != hypervisor.Off {
		t.Errorf("%+v, want off", end)
	}
}

func TestConsoleOutlivesAReboot(t *testing.T) {
	m := plugged(guest(t, userland(t), 6056))
	d, _ := run(t, m)
	awaitConsole(t, d, m.ID, bootMark)
	c, err := d.Console(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := d.Reboot(t.Context(), m.ID, false); err != nil {
		t.Fatal(err)
	}
	await(t, "the second boot", func() bool {
		log, _ := d.ConsoleLog(t.Context(), m.ID, 1<<20)
		return strings.Count(string(log), bootMark) == 2
	})
	if _, err := io.WriteString(c, "again\n"); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(2*time.Minute, func() { c.Close() })
	defer stop.Stop()
	var got []byte
	buffer := make([]byte, 1024)
	for !strings.Contains(string(got), "got again") {
		n, err := c.Read(buffer)
		if err != nil {
			t.Fatalf("the console ended with %v after %q", err, got)
		}
		got = append(got, buffer[:n]...)
	}
	if !strings.Contains(string(got), bootMark) {
		t.Errorf("the second boot is not on the console: %q", got)
	}
}

func TestAdoptionGoesOnAroundABusyPort(t *testing.T) {
	m := plugged(guest(t, userland(t), 6057))
	foreign := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: m.NICs[0].Port}}
	if err := netlink.LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(foreign)
	stateDir := t.TempDir()
	lost := record{Machine: m, Phase: running, Monitor: process{PID: 1 << 30, Boot: "of another day"}}
	if err := lost.write(stateDir); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, stateDir)
	defer takeAway(t, d, m)
	if domains, err := d.List(t.Context()); err != nil || len(domains) != 1 {
		t.Fatalf("list %+v, %v; want the machine still listed", domains, err)
	}
	if err := netlink.LinkDel(foreign); err != nil {
		t.Fatal(err)
	}
	if end := awaitEnd(t, d, m.ID); end.Status != hypervisor.Crashed || !strings.Contains(end.Reason, "host was restarted") {
		t.Errorf("%+v, want crashed with the host", end)
	}
}

// 13 blocks: with 12, the last words of eight boots are where a file of the log is full, and LXC 5.0.2 loses the end of what
// it reads when it begins another.
func TestLogsStayBounded(t *testing.T) {
	m := scripted(t, 6055, `
[ -e /boots ] && read boots </boots
boots=$((boots + 1))
echo $boots >/boots
dd if=/dev/zero bs=64k count=13 2>/dev/null
echo; echo "boot $boots"
[ $boots -lt 8 ] && reboot -f
echo "last boot"
while :; do sleep 1000; done
`)
	d, _ := run(t, m)
	awaitConsole(t, d, m.ID, "last boot")
	p := pathsOf(m)
	for path, limit := range map[string]int64{p.log(): 32 << 10, p.consoleLog(): consoleLogBytes, p.olderConsoleLog(): consoleLogBytes} {
		if info, err := os.Stat(path); err != nil || info.Size() > limit {
			t.Errorf("%s: %v, %v; want at most %d bytes", path, info, err, limit)
		}
	}
}

const (
	victimState = "HAYLOFT_LXC_TEST_VICTIM"
	victimLower = "HAYLOFT_LXC_TEST_LOWER"
	victimDir   = "HAYLOFT_LXC_TEST_DIR"
)

// TestVictim is the process that TestDriverKilled kills; by itself it does nothing.
func TestVictim(t *testing.T) {
	state := os.Getenv(victimState)
	if state == "" {
		return
	}
	d := newDriver(t, state)
	m := victimMachine(os.Getenv(victimLower), os.Getenv(victimDir), 6060)
	if err := d.Start(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	m = victimMachine(os.Getenv(victimLower), os.Getenv(victimDir), 6061)
	m.Raw = "lxc.hook.pre-start = /bin/sleep 3600"
	_ = d.Start(t.Context(), m)
}

func victimMachine(lower, dir string, id int) hypervisor.Machine {
	m := hypervisor.Machine{ID: id, Dir: filepath.Join(dir, itoa(id)), MemoryMB: 64, Disks: make([]hypervisor.Disk, 1)}
	root := &m.Disks[0].Device
	root.Kind, root.Lower, root.Upper, root.Work = "directory", lower, filepath.Join(m.Dir, "upper"), filepath.Join(m.Dir, "work")
	return plugged(m)
}

// TestDriverKilled kills the driver's process while one machine runs and another is being started.
func TestDriverKilled(t *testing.T) {
	labtest.Root(t, "lxc-start", "busybox")
	state, lower, dir := t.TempDir(), userland(t), t.TempDir()
	runs, begins := victimMachine(lower, dir, 6060), victimMachine(lower, dir, 6061)
	for _, m := range []hypervisor.Machine{runs, begins} {
		for _, sub := range []string{m.Disks[0].Device.Upper, m.Disks[0].Device.Work} {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	victim := exec.Command("/proc/self/exe", "-test.run=^TestVictim$")
	victim.Env = append(os.Environ(), victimState+"="+state, victimLower+"="+lower, victimDir+"="+dir, insideVariable+"="+asIs)
	victim.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the second machine begins to start", func() bool {
		records, _ := readRecords(state)
		return records[begins.ID].Phase == starting && len(leftovers(t, begins)) > 2
	})
	before, _ := readRecords(state)
	_ = victim.Process.Kill()
	_ = victim.Wait()
	d := newDriver(t, state)
	domains, err := d.List(t.Context())
	if err != nil || len(domains) != 1 || domains[0].ID != runs.ID || domains[0].PID != before[runs.ID].Monitor.PID {
		t.Errorf("adopted %+v, %v; want machine %d alone", domains, err, runs.ID)
	}
	for _, what := range leftovers(t, begins) {
		t.Errorf("left of the machine that was being started: %s", what)
	}
	takeAway(t, d, runs)
}
