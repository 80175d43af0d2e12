package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/internal/durable"
)

// host is what the driver found out about QEMU on this host. It is kept in StateDir/qemu-probe.json for as
// long as Key, which names everything it depends on, stays the same.
type host struct {
	Key         string
	Version     string            // "QEMU 7.2.22"
	Accelerator string            // kvm or tcg
	Machines    map[string]string // chipset to versioned machine type
	Notes       []string
}

// tcgCPU is what most distributions are built for (x86-64-v2), without the vector extensions that are slow
// to emulate, and with a random-number instruction so that a guest need not wait for entropy.
const tcgCPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"

// cpuOf is the processor that machines get under an accelerator.
func cpuOf(accel string) string {
	if accel == "kvm" {
		return "host"
	}
	return tcgCPU
}

// platform picks machine type and CPU for a new boot of m.
func (h *host) platform(m hypervisor.Machine) (platform, error) {
	chipset := strings.ToLower(m.Boot.Chipset)
	if chipset == "" {
		chipset = "pc"
	}
	machine, ok := h.Machines[chipset]
	if !ok {
		return platform{}, invalid("chipset %q: pc, q35 and microvm are possible, as far as this QEMU has them", m.Boot.Chipset)
	}
	return platform{Machine: machine, CPU: cpuOf(h.Accelerator), Accelerator: h.Accelerator, VCPU: m.VCPU, MemoryMB: m.MemoryMB}, nil
}

// Probe implements hypervisor.Driver. The accelerator is the one that has really run a guest.
func (d *Driver) Probe(ctx context.Context) (hypervisor.Capabilities, error) {
	h, err := d.probed(ctx)
	if err != nil {
		return hypervisor.Capabilities{}, err
	}
	c := hypervisor.Capabilities{Version: h.Version, Accelerator: h.Accelerator, Notes: h.Notes,
		Attributes: map[string]string{"QEMU_ACCELERATOR": h.Accelerator}}
	for _, chipset := range []string{"pc", "q35", "microvm"} {
		if machine, ok := h.Machines[chipset]; ok {
			c.Chipsets = append(c.Chipsets, chipset)
			c.Attributes["QEMU_MACHINE_"+strings.ToUpper(chipset)] = machine
		}
	}
	if d.config.CgroupRoot != "" && d.groups == nil {
		c.Notes = append(c.Notes, "machines have no control groups of their own: none can be made on this host")
	}
	return c, nil
}

// probed returns what is known of the host, finding it out first when necessary.
func (d *Driver) probed(ctx context.Context) (*host, error) {
	d.probing.Lock()
	defer d.probing.Unlock()
	if d.host != nil {
		return d.host, nil
	}
	key, err := d.probeKey()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(d.config.StateDir, "qemu-probe.json")
	var h host
	if text, err := os.ReadFile(path); err == nil && json.Unmarshal(text, &h) == nil && h.Key == key {
		d.host = &h
		return d.host, nil
	}
	found, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	found.Key = key
	text, err := json.MarshalIndent(found, "", "  ")
	if err == nil {
		err = durable.WriteFile(path, append(text, '\n'), 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("qemu probe: %w", err)
	}
	d.log.Info("qemu probed", "version", found.Version, "accelerator", found.Accelerator, "notes", found.Notes)
	d.host = found
	return found, nil
}

// probeKey changes with the way of probing, the boot, the kernel, the QEMU binary and what was configured.
func (d *Driver) probeKey() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("qemu probe: %w", err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("qemu probe: uname: %w", err)
	}
	info, err := os.Stat(d.binary)
	if err != nil {
		return "", fault.Errorf(fault.Unsupported, "qemu probe: %w", err)
	}
	return fmt.Sprintf("2 %s %s %s %d %d accel=%s uid=%d", strings.TrimSpace(string(boot)), unix.ByteSliceToString(name.Release[:]),
		d.binary, info.Size(), info.ModTime().UnixNano(), d.config.Accel, d.config.UID), nil
}
