// Package node makes device nodes of our own, which belong to who may open them. Those below /dev that the kernel makes belong
// to udev, which gives them back to root and the group disk whenever somebody who wrote to the device closes it.
package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// Dir is where the nodes are: not on a disk, so they go with the devices when the host goes down.
const Dir = "/dev/hayloft"

// Path of the node with a name.
func Path(name string) string { return filepath.Join(Dir, name) }

// Make makes the node of the device that another node is of, for that user only, mode 0600. What was there of that name
// before is replaced, if it was a block device: fault.Busy when not.
func Make(name, of string, uid, gid int) (string, error) {
	var device unix.Stat_t
	if err := unix.Stat(of, &device); err != nil {
		return "", fmt.Errorf("%s: %w", of, err)
	}
	if device.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fault.Errorf(fault.Invalid, "%s is not a block device", of)
	}
	path := Path(name)
	there, err := look(path)
	if err != nil {
		return "", err
	}
	if there != nil && there.Rdev == device.Rdev && int(there.Uid) == uid && int(there.Gid) == gid && there.Mode&0o7777 == 0o600 {
		return path, nil
	}
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return "", err
	}
	made := path + ".new"
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := unix.Mknod(made, unix.S_IFBLK|0o600, int(device.Rdev)); err != nil {
		return "", fmt.Errorf("node %s: %w", made, err)
	}
	err = os.Chown(made, uid, gid)
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(made))
	}
	return path, nil
}

// Remove removes a node, if there is one.
func Remove(name string) error {
	there, err := look(Path(name))
	if err != nil || there == nil {
		return err
	}
	return os.Remove(Path(name))
}

// look gives the node at a path, nil when nothing is there.
func look(path string) (*unix.Stat_t, error) {
	var there unix.Stat_t
	switch err := unix.Lstat(path, &there); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case there.Mode&unix.S_IFMT != unix.S_IFBLK:
		return nil, fault.Errorf(fault.Busy, "%s is not a device node of ours", path)
	}
	return &there, nil
}
