package loopfs

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's names and layout, linux/fiemap.h.
const (
	fsIocFiemap        = 0xc020660b
	fiemapFlagSync     = 0x1
	fiemapExtentLast   = 0x1
	fiemapExtentShared = 0x2000
	extentsAtOnce      = 128
)

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	start, length           uint64
	flags, mapped, count, _ uint32
	extents                 [extentsAtOnce]fiemapExtent
}

// Shared says how many bytes of a file lie in blocks that it has in common with other files, and how many it has in all,
// holes not counted.
func Shared(path string) (shared, all int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	for start := uint64(0); ; {
		m := fiemap{start: start, length: ^uint64(0) - start, flags: fiemapFlagSync, count: extentsAtOnce}
		if _, _, no := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m))); no != 0 {
			return 0, 0, fmt.Errorf("extents of %s: %w", path, no)
		}
		if m.mapped == 0 {
			return shared, all, nil
		}
		for _, e := range m.extents[:m.mapped] {
			all += int64(e.length)
			if e.flags&fiemapExtentShared != 0 {
				shared += int64(e.length)
			}
			if e.flags&fiemapExtentLast != 0 {
				return shared, all, nil
			}
			start = e.logical + e.length
		}
	}
}
