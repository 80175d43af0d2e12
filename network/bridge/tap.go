package bridge

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// openTap makes a tap that lives as long as the file, or a copy of it in a child, is open. uid may open it too;
// 0 leaves it to root. The file is non-blocking and frames carry a virtio-net header.
func openTap(name string, uid int) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fault.Errorf(fault.Unsupported, "tap %s: the kernel has no /dev/net/tun: %w", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("tap %s: /dev/net/tun: %w", name, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil && uid != 0 {
		err = unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid)
	}
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			return nil, fault.Errorf(fault.Busy, "tap %s: the name is taken: %w", name, err)
		}
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tap "+name), nil
}
