package qemu

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/disk/device"
	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/tsc"
	"hayloft/lab/golden"
	"hayloft/lab/labtest"
)

// TestLinux boots a real kernel and does with it what a boot sector cannot show: a soft reboot and the power
// button through the kernel's own ACPI, a saved system that goes on, and the names of disks.
func TestLinux(t *testing.T) {
	labtest.Root(t, "qemu-img")
	images, err := golden.Build(t.Context(), golden.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	kHz, err := tsc.KHz()
	if err != nil {
		t.Fatal(err)
	}
	ways := []struct {
		chipset, cmdline string
		try              func(*lab, hypervisor.Machine)
	}{
		{"pc", "", rebootLinux}, // by its boot loader
		{"q35", golden.CmdlinePC, saveLinux},
		{"microvm", golden.CmdlineMicrovm(kHz), rebootLinux},
	}
	for i, w := range ways {
		t.Run(w.chipset, func(t *testing.T) {
			l := &lab{T: t, d: l.d, state: l.state}
			m := guest(t, 40+i)
			m.MemoryMB = 96
			m.Boot = hypervisor.Boot{Chipset: w.chipset}
			if w.cmdline != "" {
				// The golden images may be where only we can read.
				m.Boot.Kernel, m.Boot.Initrd, m.Boot.CommandLine = filepath.Join(m.Dir, "kernel"), filepath.Join(m.Dir, "initrd"), w.cmdline
				copyFile(t, images.Kernel, m.Boot.Kernel)
				copyFile(t, images.Initrd, m.Boot.Initrd)
			}
			second := m.Disks[0]
			second.ID, second.Target = 1, "vdb"
			disk := filepath.Join(m.Dir, "tiny.qcow2")
			run(t, "qemu-img", "convert", "-q", "-O", "qcow2", images.Disk, disk)
			if err := os.Chown(disk, m.UID, m.GID); err != nil {
				t.Fatal(err)
			}
			m.Disks = []hypervisor.Disk{second, {ID: 0, Target: "vda", Device: device.Device{Kind: device.File, Format: device.QCOW2, Path: disk}}}
			m.NICs = []hypervisor.NIC{{ID: 0, MAC: "02:00:0a:00:00:01", Tap: openTap(t)}}
			begun := time.Now()
			l.bootLinux(m)
			u, err := l.d.Usage(t.Context(), m.ID)
			t.Logf("up after %v, %.2f s of CPU, %d MiB, %v", time.Since(begun), u.CPUSeconds, u.MemoryBytes>>20, err)
			l.say(m.ID, "echo sectors=$(cat /sys/block/vdb/size)\n", "sectors=2048")
			w.try(l, m)
			pressed := time.Time{} // again each second: the guest may not listen yet
			l.patient("power button", func() bool {
				if time.Since(pressed) > time.Second {
					pressed = time.Now()
					if err := l.d.Shutdown(t.Context(), m.ID); err != nil {
						t.Fatal(err)
					}
				}
				return l.domain(m.ID).Status == hypervisor.Off
			})
		})
	}
}

const linuxMark = "tiny: tiny ready at"

func (l *lab) patient(what string, holds func() bool) {
	l.Helper()
	for deadline := time.Now().Add(longest); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.Fatalf("not within %s: %s; domains and console: %s", longest, what, l.logged())
		}
	}
}

func (l *lab) logged() string {
	domains, _ := l.d.List(l.Context())
	var b strings.Builder
	for _, d := range domains {
		text, _ := l.d.ConsoleLog(l.Context(), d.ID, 2000)
		b.WriteString(string(d.Status) + " " + d.Reason + "\n" + string(text) + "\n")
	}
	return b.String()
}

func (l *lab) count(id int, text string) int {
	log, err := l.d.ConsoleLog(l.Context(), id, 1<<20)
	if err != nil {
		l.Fatal(err)
	}
	return strings.Count(string(log), text)
}

func (l *lab) bootLinux(m hypervisor.Machine) {
	l.Helper()
	l.Cleanup(func() { _ = l.d.Remove(context.Background(), m.ID) })
	if err := l.d.Start(l.Context(), m); err != nil {
		l.Fatal(err)
	}
	l.patient("Linux is up", func() bool { return l.count(m.ID, linuxMark) > 0 })
}

// say types a command and waits for what it prints.
func (l *lab) say(id int, command, answer string) {
	l.Helper()
	before := l.count(id, answer)
	c, err := l.d.Console(l.Context(), id)
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close() // not earlier: what the guest has not taken by then is lost
	const prompt = "/ # "
	prompts := l.count(id, prompt)
	for _, text := range []string{"\n", command} { // Enter first: the console starts its shell only then
		if _, err := c.Write([]byte(text)); err != nil {
			l.Fatal(err)
		}
		l.patient("prompt", func() bool { return l.count(id, prompt) > prompts })
	}
	l.patient(answer, func() bool { return l.count(id, answer) > before })
}

func rebootLinux(l *lab, m hypervisor.Machine) {
	pid := l.domain(m.ID).PID
	if err := l.d.Reboot(l.Context(), m.ID, false); err != nil {
		l.Fatal(err)
	}
	l.patient("second boot", func() bool { return l.count(m.ID, linuxMark) == 2 })
	if d := l.domain(m.ID); d.PID != pid || d.Status != hypervisor.Running {
		l.Errorf("%+v, want process %d", d, pid)
	}
}

func saveLinux(l *lab, m hypervisor.Machine) {
	l.say(m.ID, "kept=in-memory\necho is-$kept\n", "is-in-memory")
	path := filepath.Join(l.TempDir(), "saved")
	if err := l.d.Save(l.Context(), m.ID, path); err != nil {
		l.Fatal(err)
	}
	if info, err := os.Stat(path); err == nil {
		l.Logf("saved state: %d MiB", info.Size()>>20)
	}
	m.Restore = path
	begun := time.Now()
	if err := l.d.Start(l.Context(), m); err != nil {
		l.Fatal(err)
	}
	l.Logf("restored in %v", time.Since(begun))
	l.say(m.ID, "echo still-$kept\n", "still-in-memory")
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
