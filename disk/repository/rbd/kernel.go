package rbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hayloft/cloud/fault"
)

// sysDevices is where the kernel tells what it has mapped.
const sysDevices = "/sys/bus/rbd/devices"

// attach maps an image, unless it is, and gives it to uid and gid. Each has a client of its own in the kernel, so that
// fencing one does not hit the others.
func (r *Repository) attach(ctx context.Context, i rbdImage, uid, gid int) (string, error) {
	path, err := r.mapped(i)
	if err != nil {
		return "", err
	}
	if path == "" {
		options := "noshare"
		if _, err := os.Stat("/run/udev/control"); err != nil {
			options += ",noudev"
		}
		out, err := r.rbd(ctx, "device", "map", "--image", i.Name, "--options", options)
		if err != nil && strings.Contains(err.Error(), "ms_mode") { // monitors that speak only the second version of the protocol
			out, err = r.rbd(ctx, "device", "map", "--image", i.Name, "--options", options+",ms_mode=prefer-crc")
		}
		if err != nil {
			return "", err
		}
		path = strings.TrimSpace(string(out))
		if found, err := r.mapped(i); err != nil || found != path {
			return "", errors.Join(fault.Errorf(fault.Internal, "was mapped to %q, the kernel says %q", path, found), err)
		}
	}
	if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, 0o600)); err != nil {
		return "", errors.Join(err, r.detach(context.WithoutCancel(ctx), i))
	}
	return path, nil
}

// detach is the opposite of attach: fault.Busy when the device is in use.
func (r *Repository) detach(ctx context.Context, i rbdImage) error {
	path, err := r.mapped(i)
	if err != nil || path == "" {
		return err
	}
	_, err = r.rbd(ctx, "device", "unmap", path)
	return err
}

// mapped finds the device of an image, "" for none.
func (r *Repository) mapped(i rbdImage) (string, error) {
	entries, err := os.ReadDir(sysDevices)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		says := func(name string) string {
			text, _ := os.ReadFile(filepath.Join(sysDevices, e.Name(), name))
			return strings.TrimSpace(string(text))
		}
		if says("image_id") == i.ID && says("pool") == r.pool && says("pool_ns") == r.namespace && says("current_snap") == "-" {
			path := "/dev/rbd" + e.Name()
			if fi, err := os.Stat(path); err != nil || fi.Mode()&os.ModeDevice == 0 {
				return "", fmt.Errorf("%s: not a device: %w", path, err)
			}
			return path, nil
		}
	}
	return "", nil
}
