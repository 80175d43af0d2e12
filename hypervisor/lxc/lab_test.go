package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hayloft/disk/device"
	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/lab/labtest"
)

const (
	insideVariable = "HAYLOFT_LXC_TEST_INSIDE" // set: this process is in namespaces of the test's own
	layoutVariable = "HAYLOFT_LXC_TEST_LAYOUT" // v1 or v2: how the control groups are to look
	asIs           = "as-is"                   // value of the first: nothing is to be arranged
	bridge         = "br-hayloft"
	treeVariable   = "HAYLOFT_LXC_TEST_TREE" // name of the control groups of this run, so that two runs do not meet
)

// TestMain runs the lab's tests in a network namespace and a mount namespace of their own, as an agent in
// a namespace would.
func TestMain(m *testing.M) {
	if os.Getenv("HAYLOFT_LAB") != "1" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(insideVariable) != "" {
		if os.Getenv(insideVariable) == asIs {
			os.Exit(m.Run())
		}
		if err := arrange(os.Getenv(layoutVariable)); err != nil {
			fmt.Fprintln(os.Stderr, "arranging the test's namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	os.Setenv(treeVariable, "hayloft-lxc-test-"+itoa(os.Getpid()))
	cmd := inside("", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := errors.Join(cmd.Run(), clearTree()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func testTree() string { return os.Getenv(treeVariable) }

// clearTree ends what a failed run left in its control groups.
func clearTree() error {
	tree, err := cgroup.New(testTree())
	if err != nil {
		return err
	}
	names, err := tree.List()
	for _, name := range names {
		if g, openErr := tree.Open(name); openErr == nil {
			err = errors.Join(err, g.Kill(), g.Remove(context.Background()))
		}
	}
	return errors.Join(err, tree.Remove())
}

func inside(layout string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), insideVariable+"=1", layoutVariable+"="+layout)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func arrange(layout string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	switch layout {
	case "v1":
		found, err := cgroup.Detect()
		if err != nil {
			return err
		}
		for _, h := range found.Hierarchies {
			if h.V2 {
				if err := unix.Unmount(h.Path, unix.MNT_DETACH); err != nil {
					return err
				}
			}
		}
	case "v2":
		if err := unix.Unmount(cgroupMount, unix.MNT_DETACH); err != nil {
			return err
		}
		if err := unix.Mount("cgroup2", cgroupMount, "cgroup2", 0, ""); err != nil {
			return err
		}
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
	if err := netlink.LinkAdd(br); err != nil {
		return err
	}
	address, err := netlink.ParseAddr("10.99.0.1/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(br, address); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return firstError(netlink.LinkSetUp(lo), netlink.LinkSetUp(br))
}

func itoa(n int) string { return strconv.Itoa(n) }

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

const bootMark = "guest is up"

// guestInit is the test guest's process 1: it powers off, reboots and answers on its console.
const guestInit = `#!/bin/sh
trap 'poweroff -f' PWR
trap 'reboot -f' INT
(while read line; do echo "got $line"; done) </dev/console >/dev/console 2>&1 &
echo "guest is up"
while :; do sleep 1000 & wait $!; done
`

// userland makes a root file system of busybox, once for a test. Everything in it is a copy.
func userland(t testing.TB) string {
	t.Helper()
	labtest.Root(t, "lxc-start", "busybox")
	dir := filepath.Join(t.TempDir(), "lower")
	for _, sub := range []string{"bin", "sbin", "proc", "sys", "dev", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, path), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/busybox", text)
	for _, name := range []string{"sh", "sleep", "poweroff", "reboot", "cat", "ip", "hostname", "dd", "ping", "nc", "mount", "date"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	write("sbin/init", []byte(guestInit))
	return dir
}

// guest is a machine on the userland in lower, with a directory of its own and no NIC.
func guest(t testing.TB, lower string, id int) hypervisor.Machine {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "vm"+itoa(id))
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{dir, upper, work} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return hypervisor.Machine{
		ID: id, Name: "guest " + itoa(id), CPU: 0.5, VCPU: 1, MemoryMB: 64, Dir: dir,
		Disks: []hypervisor.Disk{{Device: device.Device{Kind: device.Directory, Lower: lower, Upper: upper, Work: work}}},
	}
}

// plugged gives the machine a NIC on the test's bridge.
func plugged(m hypervisor.Machine) hypervisor.Machine {
	n := m.ID%200 + 10
	m.NICs = []hypervisor.NIC{{
		MAC: fmt.Sprintf("02:00:0a:63:00:%02x", n), Bridge: bridge, Port: fmt.Sprintf("one-%d-0", m.ID),
		IP: fmt.Sprintf("10.99.0.%d/24", n), Gateway: "10.99.0.1", MTU: 1400,
	}}
	return m
}

func newDriver(t testing.TB, stateDir string) *Driver {
	t.Helper()
	labtest.Root(t, "lxc-start", "busybox")
	d, err := New(Config{StateDir: stateDir, CgroupRoot: testTree()})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// processesOf are the machine's monitor and process 1, by the record on disk.
func processesOf(t testing.TB, stateDir string, id int) (monitor, first process) {
	t.Helper()
	records, err := readRecords(stateDir)
	if err != nil {
		t.Fatal(err)
	}
	monitor = records[id].Monitor
	first, err = initOf(monitor)
	if err != nil {
		t.Fatalf("process 1 of machine %d: %v", id, err)
	}
	return monitor, first
}

// leftovers looks for whatever a machine may leave on a host.
func leftovers(t testing.TB, m hypervisor.Machine) (found []string) {
	t.Helper()
	dir := pathsOf(m).dir
	if _, err := os.Lstat(dir); err == nil {
		found = append(found, dir)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), m.Dir) {
		found = append(found, fmt.Sprintf("a mount below %s (%v)", m.Dir, err))
	}
	for _, n := range m.NICs {
		if _, err := netlink.LinkByName(n.Port); err == nil {
			found = append(found, "port "+n.Port)
		}
	}
	layout, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range layout.Hierarchies {
		group := filepath.Join(h.Path, testTree(), containerName(m.ID))
		if _, err := os.Stat(group); err == nil {
			found = append(found, group)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range processes {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), dir) {
			found = append(found, file+": "+strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	if _, err := os.Stat("/run/lxc/lock" + dir); err == nil {
		found = append(found, "/run/lxc/lock"+dir)
	}
	return found
}
