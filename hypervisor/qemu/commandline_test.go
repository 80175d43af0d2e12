package qemu

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hayloft/cloud/fault"
	"hayloft/disk/device"
	"hayloft/hypervisor"
)

var update = flag.Bool("update", false, "write the golden command lines anew")

func plain() hypervisor.Machine {
	return hypervisor.Machine{ID: 7, Name: "one-7", UUID: "00000000-0000-4000-8000-000000000007", VCPU: 1, MemoryMB: 96, Dir: "/var/lib/hayloft/7",
		Disks: []hypervisor.Disk{
			{ID: 0, Target: "vda", Discard: true, Device: device.Device{Kind: device.File, Format: device.QCOW2, Path: "/var/lib/hayloft/7/disk.0"}},
			{ID: 1, Target: "hda", CDROM: true, Device: device.Device{Kind: device.File, Format: device.Raw, Path: "/var/lib/hayloft/7/disk.1"}}},
		NICs: []hypervisor.NIC{{ID: 0, MAC: "02:00:0a:00:00:01", Tap: os.Stdin}}}
}

func on(machine, accel string) settings {
	return settings{platform: platform{Machine: machine, CPU: "host", Accelerator: accel}, runtimeDir: "/var/lib/hayloft/7/qemu",
		tbSizeMB: 32, nbdReconnect: time.Minute}
}

func with(change func(*hypervisor.Machine)) hypervisor.Machine {
	m := plain()
	change(&m)
	return m
}

func TestCommandLine(t *testing.T) {
	kvm := on("pc-i440fx-7.2", "kvm")
	kvm.vhost = true
	tcg := on("pc-i440fx-7.2", "tcg")
	tcg.CPU = tcgCPU
	tests := []struct {
		name string
		m    hypervisor.Machine
		s    settings
	}{
		{"default", plain(), tcg},
		{"kvm", plain(), kvm},
		{"hostile", with(func(m *hypervisor.Machine) {
			m.Name = `x,process=y" -drive file=/etc/shadow`
			m.Dir = "/a,b=c"
			m.Disks[0].Device.Path = `/a,b/"},{"driver":"file`
		}), func() settings { s := tcg; s.runtimeDir = "/a,b=c/qemu"; return s }()},
		{"backing", with(func(m *hypervisor.Machine) {
			m.Disks[0].Device.Backing = &device.Device{Kind: device.NBD, Path: "/run/hayloft/0a1b2c3d/7.0", Format: device.Raw, ReadOnly: true}
			m.Disks[0].Cache = "none"
			m.Disks[1].Device = device.Device{Kind: device.NBD, Path: "/run/hayloft/0a1b2c3d/7.1", Format: device.Raw, ReadOnly: true}
		}), tcg},
		{"volumes", with(func(m *hypervisor.Machine) {
			m.Disks[0].Device = device.Device{Kind: device.Block, Path: "/dev/vg/7.0", Format: device.QCOW2,
				Backing: &device.Device{Kind: device.NBD, Path: "/run/hayloft/0a1b2c3d/7.0", Format: device.Raw, ReadOnly: true}}
			m.Disks[0].Cache, m.Disks[0].Discard = "none", true
			m.Disks[1].Device = device.Device{Kind: device.Block, Path: "/dev/vg/7.1", Format: device.Raw}
		}), tcg},
		{"microvm", with(func(m *hypervisor.Machine) {
			m.Boot = hypervisor.Boot{Kernel: "/k", Initrd: "/i", CommandLine: "console=ttyS0 root=/dev/vda"}
			m.Disks = append(m.Disks[:1], hypervisor.Disk{ID: 1, Target: "vdb", CDROM: true, Device: device.Device{Kind: device.File, Path: "/c"}},
				hypervisor.Disk{ID: 2, Target: "sda", Device: device.Device{Kind: device.Block, Path: "/dev/x"}})
		}), on("microvm", "tcg")},
		{"q35", with(func(m *hypervisor.Machine) {
			m.Boot.Order = []string{"nic0", "disk2"}
			m.Graphics = &hypervisor.Graphics{Type: "VNC", Listen: "::1", Port: 5907, Password: "sesame"}
			m.Disks = append(m.Disks, hypervisor.Disk{ID: 2, Target: "sdb", Cache: "none", Device: device.Device{Kind: device.NBD, Path: "/run/n.sock", Export: "one 7"}},
				hypervisor.Disk{ID: 3, Target: "hdc", Cache: "writethrough", Device: device.Device{Kind: device.Block, Path: "/dev/vg/x"}})
			m.NICs = append(m.NICs, hypervisor.NIC{ID: 1, MAC: "02:00:0a:00:00:02", Model: "e1000", Tap: os.Stdin})
			m.NICs[0].MTU = 1400
			m.Restore = "/s"
			m.Raw = `-device "virtio balloon"  -x ''`
		}), on("pc-q35-7.2", "kvm")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			line, err := buildCommandLine(tt.m, tt.s)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(line.args, "\n") + "\n"
			golden := filepath.Join("testdata", tt.name+".args")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got, one argument a line:\n%s", d)
			}
			if strings.Contains(got, "sesame") {
				t.Error("the password is on the command line")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		names string // what the error must name
		m     hypervisor.Machine
		s     settings
	}{
		{"memory", with(func(m *hypervisor.Machine) { m.MemoryMB = 0 }), on("pc", "tcg")},
		{"virtual CPUs", with(func(m *hypervisor.Machine) { m.VCPU = 0 }), on("pc", "tcg")},
		{"uuid", with(func(m *hypervisor.Machine) { m.UUID = "x" }), on("pc", "tcg")},
		{"directory", with(func(m *hypervisor.Machine) { m.Dir = "rel" }), on("pc", "tcg")},
		{"kernel", with(func(m *hypervisor.Machine) { m.Boot.Kernel = "-rel" }), on("pc", "tcg")},
		{"without a kernel", with(func(m *hypervisor.Machine) { m.Boot.Initrd = "/i" }), on("pc", "tcg")},
		{"firmware", with(func(m *hypervisor.Machine) { m.Boot.Firmware = "UEFI" }), on("pc", "tcg")},
		{"microvm", plain(), on("microvm", "tcg")},
		{"IDE", with(func(m *hypervisor.Machine) { m.Boot.Kernel = "/k" }), on("microvm", "tcg")},
		{"graphics", with(func(m *hypervisor.Machine) { m.Graphics = &hypervisor.Graphics{Type: "spice", Port: 5900} }), on("pc", "tcg")},
		{"port 80", with(func(m *hypervisor.Machine) { m.Graphics = &hypervisor.Graphics{Type: "vnc", Port: 80} }), on("pc", "tcg")},
		{"address", with(func(m *hypervisor.Machine) {
			m.Graphics = &hypervisor.Graphics{Type: "vnc", Port: 5900, Listen: "0,password=off"}
		}), on("pc", "tcg")},
		{"nic 0: no tap", with(func(m *hypervisor.Machine) { m.NICs[0].Tap = nil }), on("pc", "tcg")},
		{"nic 0: model", with(func(m *hypervisor.Machine) { m.NICs[0].Model = "ne9000,x" }), on("pc", "tcg")},
		{"nic 0: MAC", with(func(m *hypervisor.Machine) { m.NICs[0].MAC = "x" }), on("pc", "tcg")},
		{"boot order", with(func(m *hypervisor.Machine) { m.Boot.Order = []string{"disk9"} }), on("pc", "tcg")},
		{"disk 1: target", with(func(m *hypervisor.Machine) { m.Disks[1].Target = "vda" }), on("pc", "tcg")},
		{"disk 0: target", with(func(m *hypervisor.Machine) { m.Disks[0].Target = "xvda" }), on("pc", "tcg")},
		{"disk 0: target", with(func(m *hypervisor.Machine) { m.Disks[0].Target = "hde" }), on("pc", "tcg")},
		{"disk 0: target", with(func(m *hypervisor.Machine) { m.Disks[0].Target = "vdA" }), on("pc", "tcg")},
		{"read-only", with(func(m *hypervisor.Machine) { m.Disks[0].Target, m.Disks[0].Device.ReadOnly = "hdb", true }), on("pc", "tcg")},
		{"cache mode", with(func(m *hypervisor.Machine) { m.Disks[0].Cache = "much" }), on("pc", "tcg")},
		{"device kind", with(func(m *hypervisor.Machine) { m.Disks[0].Device.Kind = device.Directory }), on("pc", "tcg")},
		{"format", with(func(m *hypervisor.Machine) { m.Disks[0].Device.Format = "vmdk" }), on("pc", "tcg")},
		{"device path", with(func(m *hypervisor.Machine) { m.Disks[0].Device.Path = "json:{}" }), on("pc", "tcg")},
		{"backing device /b", with(func(m *hypervisor.Machine) {
			m.Disks[1].Device.Backing = &device.Device{Kind: device.NBD, Path: "/b"}
		}), on("pc", "tcg")},
		{"backing device /b", with(func(m *hypervisor.Machine) {
			m.Disks[0].Device.Backing = &device.Device{Kind: device.File, Path: "/b", Format: device.QCOW2}
		}), on("pc", "tcg")},
		{"device path", with(func(m *hypervisor.Machine) {
			m.Disks[0].Device.Backing = &device.Device{Kind: device.NBD, Path: "b"}
		}), on("pc", "tcg")},
		{"raw data", with(func(m *hypervisor.Machine) { m.Raw = `-x "y` }), on("pc", "tcg")},
	}
	for _, tt := range tests {
		_, err := buildCommandLine(tt.m, tt.s)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.names) {
			t.Errorf("got %v, want an invalid request that names %q", err, tt.names)
		}
	}
}

// FuzzInjection checks that names and paths of users stay single arguments, and single values inside them.
func FuzzInjection(f *testing.F) {
	f.Add("a,b", "/x,y=z", "-a 'b c'")
	f.Add(`"}`, "/\\", `"-x`)
	f.Fuzz(func(t *testing.T, name, path, raw string) {
		base, err := buildCommandLine(plain(), on("pc", "tcg"))
		if err != nil {
			t.Fatal(err)
		}
		line, err := buildCommandLine(with(func(m *hypervisor.Machine) { m.Name, m.Disks[0].Device.Path = name, path }), on("pc", "tcg"))
		if err != nil {
			return
		}
		if len(line.args) != len(base.args) {
			t.Fatalf("%d arguments instead of %d", len(line.args), len(base.args))
		}
		value := strings.TrimSuffix(strings.TrimPrefix(line.args[1], "guest="), ",debug-threads=on")
		if strings.Contains(strings.ReplaceAll(value, ",,", ""), ",") {
			t.Errorf("name %q became %q", name, line.args[1])
		}
		at := slices.Index(line.args, "-blockdev") + 1
		for !strings.Contains(line.args[at], `"disk0-node"`) {
			at += slices.Index(line.args[at:], "-blockdev") + 1
		}
		var node struct{ File struct{ Filename string } }
		if err := json.Unmarshal([]byte(line.args[at]), &node); err != nil {
			t.Errorf("path %q: %v", path, err)
		}
		if strings.ToValidUTF8(path, "") == path && node.File.Filename != path {
			t.Errorf("path %q became %q", path, node.File.Filename)
		}
		_, _ = buildCommandLine(with(func(m *hypervisor.Machine) { m.Raw = raw }), on("pc", "tcg"))
	})
}

func TestEmulatedMicrovmIsToldTheRateOfItsCounter(t *testing.T) {
	m := plain()
	m.Boot = hypervisor.Boot{Kernel: "/k", CommandLine: "quiet"}
	for _, tt := range []struct {
		machine, accel, words, want string
	}{
		{"microvm", "tcg", "quiet", "quiet tsc_early_khz=2600000"},
		{"microvm", "tcg", "", "tsc_early_khz=2600000"},
		{"microvm", "tcg", "tsc_early_khz=1", "tsc_early_khz=1"},
		{"microvm", "kvm", "quiet", "quiet"},
		{"pc", "tcg", "quiet", "quiet"},
	} {
		s := on(tt.machine, tt.accel)
		s.tscKHz = 2600000
		m.Boot.CommandLine = tt.words
		m.Disks, m.NICs = nil, nil
		line, err := buildCommandLine(m, s)
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.Index(line.args, "-append"); i < 0 || line.args[i+1] != tt.want {
			t.Errorf("%s under %s with %q: %q", tt.machine, tt.accel, tt.words, line.args)
		}
	}
}
