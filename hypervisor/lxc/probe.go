package lxc

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/device"
	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/internal/command"
)

// Probe implements hypervisor.Driver by making a container's mounts in a namespace that goes away with the
// probe: fault.Unsupported, with the cause, where that or lxc is not to be had.
func (d *Driver) Probe(ctx context.Context) (hypervisor.Capabilities, error) {
	out, err := d.config.Runner.Run(ctx, command.Cmd{Name: "lxc-start", Args: []string{"--version"}})
	if err != nil {
		return hypervisor.Capabilities{}, err
	}
	for _, program := range []string{postStop, truncate} {
		if _, err := exec.LookPath(program); err != nil {
			return hypervisor.Capabilities{}, fault.Errorf(fault.Unsupported, "lxc: program %s is not installed", program)
		}
	}
	if err := d.tryMounts(); err != nil {
		return hypervisor.Capabilities{}, fault.Errorf(fault.Unsupported, "lxc: this host cannot run containers: %w", err)
	}
	c := hypervisor.Capabilities{Version: "LXC " + strings.TrimSpace(string(out)), Attributes: map[string]string{}}
	layout, err := cgroup.Detect()
	if err != nil {
		return hypervisor.Capabilities{}, err
	}
	c.Attributes["CGROUPS"] = string(layout.Mode)
	if !d.tree.Available() {
		c.Notes = append(c.Notes, "control groups are not writable: containers run without limits")
	}
	return c, nil
}

// tryMounts makes all of a container's mounts, with an overlay on a tmpfs.
func (d *Driver) tryMounts() error {
	scratch, err := os.MkdirTemp(d.config.StateDir, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	return onOwnThread(func() error {
		if err := privateView(); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "size=64k"); err != nil {
			return err
		}
		sub := func(name string) string { return filepath.Join(scratch, name) }
		for _, name := range []string{"lower", "upper", "work", "root"} {
			if err := os.Mkdir(sub(name), 0o700); err != nil {
				return err
			}
		}
		return mountRoot(device.Device{Lower: sub("lower"), Upper: sub("upper"), Work: sub("work")}, sub("root"))
	})
}
