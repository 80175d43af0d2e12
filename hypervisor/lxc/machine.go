package lxc

import (
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/device"
	"hayloft/hypervisor"
)

var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)

// check says what of the machine a container cannot be, with fault.Invalid naming the part. What passes
// can be written into a configuration line.
func check(m hypervisor.Machine) error {
	invalid := func(format string, args ...any) error {
		return fault.Errorf(fault.Invalid, "domain %d: "+format, append([]any{m.ID}, args...)...)
	}
	switch {
	case m.ID < 0:
		return invalid("number is negative")
	case m.Restore != "":
		return fault.Errorf(fault.Unsupported, "domain %d: restore: the memory of a container cannot be saved or restored", m.ID)
	case m.Graphics != nil:
		return invalid("graphics: a container has no screen")
	case m.Boot.Kernel != "" || m.Boot.Initrd != "":
		return invalid("boot: a container runs on the host's kernel, not on %s", m.Boot.Kernel)
	case m.MemoryMB < 0 || m.CPU < 0:
		return invalid("memory of %d MB, CPU %g", m.MemoryMB, m.CPU)
	case strings.ContainsRune(m.Raw, 0):
		return invalid("raw data: contains a NUL byte")
	}
	if err := checkPath(m.Dir); err != nil {
		return invalid("directory %q: %w", m.Dir, err)
	}
	if m.Context != "" {
		if err := checkPath(m.Context); err != nil {
			return invalid("context %q: %w", m.Context, err)
		}
	}
	if len(m.Disks) != 1 {
		return invalid("disks: a container has one, its root directory; this machine has %d", len(m.Disks))
	}
	root := m.Disks[0]
	if root.Device.Kind != device.Directory {
		return invalid("disk %d: a container's disk is a directory, not a %s", root.ID, root.Device.Kind)
	}
	for _, path := range []string{root.Device.Lower, root.Device.Upper, root.Device.Work} {
		if err := checkPath(path); err != nil {
			return invalid("disk %d: path %q: %w", root.ID, path, err)
		}
	}
	for _, n := range m.NICs {
		if err := checkNIC(n); err != nil {
			return invalid("NIC %d: %w", n.ID, err)
		}
	}
	return nil
}

var plainPath = regexp.MustCompile(`^/[\pL\pN/._@%+=~-]*$`)

// checkPath accepts what needs no escaping as an overlay option, in a configuration line and in the shell
// by which lxc runs hooks.
func checkPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fault.Errorf(fault.Invalid, "is not an absolute, clean path")
	}
	if !plainPath.MatchString(path) {
		return fault.Errorf(fault.Invalid, "has characters other than letters, digits and /._@%%+=~-")
	}
	return nil
}

func checkNIC(n hypervisor.NIC) error {
	for what, name := range map[string]string{"bridge": n.Bridge, "port": n.Port} {
		if !interfaceName.MatchString(name) {
			return fault.Errorf(fault.Invalid, "%s %q is not an interface name", what, name)
		}
	}
	if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 {
		return fault.Errorf(fault.Invalid, "MAC %q is not an Ethernet address", n.MAC)
	}
	if n.IP != "" {
		if p, err := netip.ParsePrefix(n.IP); err != nil || !p.Addr().Is4() {
			return fault.Errorf(fault.Invalid, "IP %q is not an IPv4 address with prefix length", n.IP)
		}
	}
	if n.Gateway != "" {
		if a, err := netip.ParseAddr(n.Gateway); err != nil || !a.Is4() {
			return fault.Errorf(fault.Invalid, "gateway %q is not an IPv4 address", n.Gateway)
		}
	}
	if n.MTU < 0 || n.MTU > 65535 {
		return fault.Errorf(fault.Invalid, "MTU %d", n.MTU)
	}
	return nil
}
