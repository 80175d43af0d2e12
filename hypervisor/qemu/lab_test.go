package qemu

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/disk/device"
	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/hypervisor/hypervisortest"
	"hayloft/internal/leaktest"
	"hayloft/lab/labtest"
)

func TestMain(m *testing.M) {
	status := m.Run()
	if err := leaktest.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, "goroutines are left:", err)
		status = 1
	}
	os.Remove(sharedProbe())
	os.Exit(status)
}

// sharedProbe keeps the probe's answer for all tests of this process.
func sharedProbe() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("hayloft-qemu-probe-%d.json", os.Getpid()))
}

// cgroupRoot is this test process's own.
func cgroupRoot() string { return fmt.Sprintf("hayloft-qemutest-%d", os.Getpid()) }

// open makes a driver, closed at the end of the test. The probe's answer is shared between the tests.
func open(t testing.TB, config Config) *Driver {
	t.Helper()
	d := openOnly(t, config)
	t.Cleanup(func() { d.Close() })
	return d
}

// openOnly leaves closing to the caller.
func openOnly(t testing.TB, config Config) *Driver {
	t.Helper()
	if config.Binary == "" {
		seedProbe(t, config.StateDir)
	}
	config.CgroupRoot = cgroupRoot()
	config.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	d, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// seedProbe gives a new state directory the answer that another test already has.
func seedProbe(t testing.TB, stateDir string) {
	shared, target := sharedProbe(), filepath.Join(stateDir, "qemu-probe.json")
	if text, err := os.ReadFile(shared); err == nil {
		if err := os.WriteFile(target, text, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	d, err := New(Config{StateDir: stateDir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shared, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// machineDir is a machine's directory that an unprivileged QEMU can reach.
func machineDir(t testing.TB, id int) string {
	t.Helper()
	parent, err := os.MkdirTemp("", "hvm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	dir := filepath.Join(parent, fmt.Sprint(id))
	for _, err := range []error{os.Chmod(parent, 0o711), os.Mkdir(dir, 0o711)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func guest(t testing.TB, id int) hypervisor.Machine {
	dir := machineDir(t, id)
	return hypervisor.Machine{ID: id, Name: fmt.Sprintf("one-%d, \"test\"=1", id), CPU: 0.1, VCPU: 1, MemoryMB: 8, Dir: dir,
		UID: 4321, GID: 4321,
		Disks: []hypervisor.Disk{{ID: 0, Target: "vda", Device: device.Device{Kind: device.File, Format: device.Raw, Path: guestDisk(t, dir), ReadOnly: true}}}}
}

// press types on the console, which stays open until the end of the test: what the guest had not taken would be lost.
func press(t testing.TB, d hypervisor.Driver, m hypervisor.Machine, key string) {
	t.Helper()
	c, err := d.(hypervisor.Consoler).Console(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte(key)); err != nil {
		t.Fatal(err)
	}
}

// powerOffAway types on the console while no driver is there, and waits until the guest is off.
func powerOffAway(t testing.TB, m hypervisor.Machine) {
	t.Helper()
	conn, err := dialConsole(t, m)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(typePowerOff)); err != nil {
		t.Fatal(err)
	}
	awaitGuestOff(t, m)
}

func TestConformance(t *testing.T) {
	labtest.Root(t, "qemu-system-x86_64", "sleep", "sh")
	real, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	wrapper := filepath.Join(machineDir(t, 0), "qemu")
	script := "#!/bin/sh\ncase \"$*\" in *guest=slow*) sleep 3600;; esac\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeGroups(t) })
	accel := "" // probed in the first test, then known
	hypervisortest.Run(t, hypervisortest.Harness{
		New: func(t testing.TB, stateDir string) hypervisor.Driver {
			d := open(t, Config{StateDir: stateDir, Binary: wrapper, Accel: accel})
			c, err := d.Probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			accel = c.Accelerator
			return d
		},
		Machine: guest,
		Failing: func(t testing.TB, id int) hypervisor.Machine {
			m := guest(t, id)
			m.Disks[0].Device.Path = filepath.Join(m.Dir, "absent")
			return m
		},
		Slow: func(t testing.TB, id int) hypervisor.Machine {
			m := guest(t, id)
			m.Name = "slow"
			return m
		},
		Invalid: func(t testing.TB, id int) (hypervisor.Machine, string) {
			m := guest(t, id)
			m.NICs = []hypervisor.NIC{{ID: 3, MAC: "02:00:00:00:00:01"}}
			return m, "nic 3"
		},
		PowerOff: func(t testing.TB, _ string, d hypervisor.Driver, m hypervisor.Machine) {
			if d == nil {
				powerOffAway(t, m)
				return
			}
			press(t, d, m, typePowerOff)
		},
		KillProcess: func(t testing.TB, stateDir string, _ hypervisor.Driver, m hypervisor.Machine) {
			pid := recordedPID(t, stateDir, m)
			if p, err := os.FindProcess(pid); err != nil || p.Kill() != nil {
				t.Fatalf("process %d cannot be killed", pid)
			}
		},
		Leftovers: leftovers,
		BootMark:  bootMark, ConsoleInput: "hello\r", ConsoleOutput: "hello",
		Console: true, Meter: true, Freeze: true, Save: true, Rounds: 4, Many: 6, Patience: longest,
	})
}

func leftovers(t testing.TB, m hypervisor.Machine) []string {
	var out []string
	if _, err := os.Stat(filepath.Join(m.Dir, "qemu")); err == nil {
		out = append(out, "runtime directory")
	}
	tree, err := cgroup.New(cgroupRoot())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Open(groupName(m.ID)); err == nil {
		out = append(out, "control group")
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		if text, err := os.ReadFile(p); err == nil && bytes.Contains(text, []byte(m.Dir+"/")) {
			out = append(out, p)
		}
	}
	return out
}

func removeGroups(t testing.TB) {
	tree, err := cgroup.New(cgroupRoot())
	if err == nil {
		err = tree.Remove()
	}
	if err != nil {
		t.Error(err)
	}
}
