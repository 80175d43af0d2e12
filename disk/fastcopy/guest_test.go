package fastcopy_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/fastcopy"
	"hayloft/lab/labtest"
)

func TestGuestBlockDevice(t *testing.T) {
	labtest.Guest(t)
	device := labtest.Disks(t, 1)[0]
	content := random(rand.New(rand.NewPCG(1, 2)), 8<<20+777)
	dirty, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dirty.Close()
	size, err := dirty.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dirty.WriteAt(bytes.Repeat([]byte{0xA5}, 9<<20), 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = dirty.WriteAt(make([]byte, 9<<20), 0) }()
	result, err := fastcopy.ToPath(t.Context(), device, fastcopy.Spec{Source: bytes.NewReader(content), Index: indexOf(t, content)})
	if err != nil {
		t.Fatal(err)
	}
	if result.Zeroed == 0 || result.Written == 0 || result.Written+result.Zeroed != int64(len(content)) {
		t.Errorf("%+v", result)
	}
	if n := resident(t, dirty, 9<<20); n > 64<<10 {
		t.Errorf("%d bytes of the device are in the page cache after the copy", n)
	}
	got := make([]byte, 9<<20)
	_ = unix.Fadvise(int(dirty.Fd()), 0, 0, unix.FADV_DONTNEED)
	if _, err := dirty.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:len(content)], content) {
		t.Fatalf("wrong from byte %d on", mismatch(got, content))
	}
	if rest := got[len(content):]; !bytes.Equal(rest, bytes.Repeat([]byte{0xA5}, len(rest))) {
		t.Error("what is behind the image was touched")
	}
	if _, err := fastcopy.ToPath(t.Context(), device, fastcopy.Spec{Source: bytes.NewReader(nil), Size: size + 1}); !fault.Is(err, fault.Invalid) {
		t.Errorf("too short a device: %v", err)
	}
	mine, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	if _, err := fastcopy.ToPath(t.Context(), device, fastcopy.Spec{Source: bytes.NewReader(content), Size: 777}); !fault.Is(err, fault.Busy) {
		t.Errorf("a device in use: %v", err)
	}
}

// resident is how much of the first bytes of a file is in the page cache.
func resident(t *testing.T, f *os.File, size int) int {
	t.Helper()
	memory, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(memory) }()
	page := os.Getpagesize()
	pages := make([]byte, (size+page-1)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&memory[0])), uintptr(size), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	n := 0
	for _, p := range pages {
		n += int(p&1) * page
	}
	return n
}
