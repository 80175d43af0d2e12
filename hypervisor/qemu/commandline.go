package qemu

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

// settings is what the command line takes from the driver and the host, beside the machine.
type settings struct {
	platform
	runtimeDir   string
	tbSizeMB     int
	nbdReconnect time.Duration
	vhost        bool   // pass /dev/vhost-net files
	tscKHz       uint64 // rate of the time stamp counter, for guests that cannot measure it; 0: not known
}

// File descriptors that every QEMU is started with; those of NICs follow.
const (
	qmpFD     = 3
	consoleFD = 4
	firstFD   = 5
)

// commandLine is what QEMU is started with.
type commandLine struct {
	args  []string
	taps  []int // index into Machine.NICs of the tap in each file descriptor from firstFD on
	vhost int   // number of /dev/vhost-net files after those
}

// line builds a commandLine. Everything that comes from a user goes into JSON or an argument of its own,
// or is escaped.
type line struct {
	commandLine
	m     hypervisor.Machine
	s     settings
	mmio  int             // next free virtio-mmio slot (microvm)
	names map[string]bool // controllers already made
}

func buildCommandLine(m hypervisor.Machine, s settings) (commandLine, error) {
	l := &line{m: m, s: s, names: map[string]bool{}}
	steps := []func() error{l.check, l.base, l.boot, l.channels, l.nics, l.disks, l.graphics, l.raw}
	for _, step := range steps {
		if err := step(); err != nil {
			return commandLine{}, err
		}
	}
	return l.commandLine, nil
}

func invalid(format string, args ...any) error { return fault.Errorf(fault.Invalid, format, args...) }

var uuidPattern = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

func (l *line) check() error {
	m := l.m
	for what, path := range map[string]string{"machine directory": m.Dir, "kernel": m.Boot.Kernel, "initrd": m.Boot.Initrd, "saved state": m.Restore} {
		if path != "" && !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			return invalid("%s %q: not an absolute path", what, path)
		}
	}
	switch {
	case m.Dir == "":
		return invalid("machine directory: none given")
	case m.MemoryMB < 1:
		return invalid("memory of %d MB: at least 1 is needed", m.MemoryMB)
	case m.VCPU < 1 || m.VCPU > 255:
		return invalid("%d virtual CPUs: 1 to 255 are possible", m.VCPU)
	case m.UUID != "" && !uuidPattern.MatchString(m.UUID):
		return invalid("uuid %q: not a UUID", m.UUID)
	case strings.ContainsRune(m.Name+m.Boot.CommandLine, 0):
		return invalid("name or kernel command line: contains a zero byte")
	case m.Boot.Kernel == "" && (m.Boot.Initrd != "" || m.Boot.CommandLine != ""):
		return invalid("initrd or kernel command line given without a kernel")
	case l.microvm() && m.Boot.Kernel == "":
		return invalid("chipset microvm: needs direct kernel boot (a kernel), it has no disk boot")
	case l.microvm() && m.Graphics != nil:
		return invalid("chipset microvm: has no graphics")
	case m.Boot.Firmware != "" && !strings.EqualFold(m.Boot.Firmware, "BIOS"):
		return invalid("firmware %q: only BIOS is possible", m.Boot.Firmware)
	}
	return nil
}

func (l *line) microvm() bool { return chipsetOf(l.s.Machine) == "microvm" }

// chipsetOf is the family of a versioned machine type.
func chipsetOf(machine string) string {
	switch {
	case strings.HasPrefix(machine, "microvm"):
		return "microvm"
	case strings.HasPrefix(machine, "pc-q35"), machine == "q35":
		return "q35"
	}
	return "pc"
}

func (l *line) add(args ...string) { l.args = append(l.args, args...) }

// escape makes a value safe inside QEMU's key=value lists.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

type properties map[string]any

func (l *line) object(option string, p properties) {
	text, err := json.Marshal(p)
	if err != nil { // strings, numbers and maps always marshal
		panic(err)
	}
	l.add(option, string(text))
}

// device adds a device. driver is the model without its bus ("virtio-blk"); virtio models go to the bus of the chipset.
func (l *line) device(driver string, p properties) {
	if strings.HasPrefix(driver, "virtio-") {
		if l.microvm() {
			driver += "-device"
			// Linux meets the highest slot first, and names disks and NICs in that order.
			p["bus"] = fmt.Sprintf("virtio-mmio-bus.%d", mmioSlots-1-l.mmio)
			l.mmio++
		} else {
			driver += "-pci"
		}
	}
	p["driver"] = driver
	l.object("-device", p)
}

func (l *line) base() error {
	m := l.m
	l.add("-name", "guest="+escape(m.Name)+",debug-threads=on")
	if m.UUID != "" {
		l.add("-uuid", m.UUID)
	}
	machine := l.s.Machine + ",usb=off,dump-guest-core=off"
	if !l.microvm() {
		machine += ",vmport=off"
		if m.Graphics == nil {
			machine += ",graphics=off" // firmware and boot loader talk on the serial console
		}
	}
	l.add("-machine", machine)
	if l.s.Accelerator == "tcg" {
		l.add("-accel", fmt.Sprintf("tcg,tb-size=%d", l.s.tbSizeMB))
	} else {
		l.add("-accel", l.s.Accelerator)
	}
	l.add("-cpu", l.s.CPU, "-m", strconv.Itoa(m.MemoryMB), "-smp", strconv.Itoa(m.VCPU),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// A guest that goes off leaves QEMU waiting, so that its end can be told from a crash also later.
		"-action", "reboot=reset,shutdown=pause,panic=pause",
		"-S")
	if m.Restore != "" {
		l.add("-incoming", "defer")
	}
	return nil
}

func (l *line) boot() error {
	b := l.m.Boot
	if b.Kernel == "" {
		l.add("-boot", "strict=on")
		return nil
	}
	l.add("-kernel", b.Kernel)
	if b.Initrd != "" {
		l.add("-initrd", b.Initrd)
	}
	if words := l.kernelWords(); words != "" {
		l.add("-append", words)
	}
	return nil
}

// kernelWords is the kernel's command line. An emulated microvm has no second clock to measure the time stamp
// counter with: on a busy host Linux fails at it and hangs, unless it is told the rate.
func (l *line) kernelWords() string {
	words := l.m.Boot.CommandLine
	if l.s.tscKHz != 0 && l.s.Accelerator == "tcg" && strings.HasPrefix(l.s.Machine, "microvm") && !strings.Contains(words, "tsc_early_khz=") {
		words = strings.TrimSpace(fmt.Sprintf("%s tsc_early_khz=%d", words, l.s.tscKHz))
	}
	return words
}

// channels adds what the driver and the guest talk through, and what every guest has.
func (l *line) channels() error {
	l.add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD), "-mon", "chardev=qmp,mode=control")
	l.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d,server=on,wait=off,logfile=%s,logappend=on",
		consoleFD, escape(filepath.Join(l.s.runtimeDir, consoleLog))), "-serial", "chardev:console")
	l.object("-object", properties{"qom-type": "rng-builtin", "id": "random"})
	l.device("virtio-rng", properties{"rng": "random", "id": "rng0"})
	if !l.microvm() {
		l.object("-device", properties{"driver": "pvpanic"})
	}
	return nil
}

func (l *line) graphics() error {
	g := l.m.Graphics
	if g == nil {
		return nil
	}
	if !strings.EqualFold(g.Type, "vnc") {
		return invalid("graphics %q: only vnc is possible", g.Type)
	}
	if g.Port < 5900 || g.Port > 65535 {
		return invalid("graphics port %d: 5900 to 65535 are possible", g.Port)
	}
	listen := g.Listen
	if listen == "" {
		listen = "127.0.0.1"
	}
	ip := net.ParseIP(listen)
	if ip == nil {
		return invalid("graphics address %q: not an IP address", listen)
	}
	if ip.To4() == nil {
		listen = "[" + listen + "]"
	}
	vnc := fmt.Sprintf("%s:%d", listen, g.Port-5900)
	if g.Password != "" {
		vnc += ",password=on" // refuses everybody until the password has come over QMP
	}
	l.add("-vnc", vnc)
	l.object("-device", properties{"driver": "VGA", "id": "video0"})
	l.object("-device", properties{"driver": "qemu-xhci", "id": "usb"})
	l.object("-device", properties{"driver": "usb-tablet", "bus": "usb.0"})
	return nil
}

// raw adds the template's own arguments, split at spaces that are not quoted. Nothing is expanded.
func (l *line) raw() error {
	var word strings.Builder
	var quote rune
	open := false
	for _, r := range l.m.Raw {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, open = r, true
		case strings.ContainsRune(" \t\r\n", r):
			if open {
				l.add(word.String())
				word.Reset()
			}
			open = false
		case r == 0:
			return invalid("raw data: contains a zero byte")
		default:
			word.WriteRune(r)
			open = true
		}
	}
	if quote != 0 {
		return invalid("raw data %q: quote %c is not closed", l.m.Raw, quote)
	}
	if open {
		l.add(word.String())
	}
	return nil
}
