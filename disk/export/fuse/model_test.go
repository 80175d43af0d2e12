package fuse

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestModel: whatever is done to a file through the kernel, it reads as a plain slice would. It is not mapped here: a
// Go process that serves what it has mapped itself can stop for ever, in a page fault that the collector waits for.
func TestModel(t *testing.T) {
	f := mount(t)
	const size = 100_001
	rapid.Check(t, func(t *rapid.T) {
		d := newRAM(size)
		path, err := f.Add("disk", d, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Remove("disk")
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		fd := int(file.Fd())
		model := make([]byte, size)
		offset := func() int64 { return rapid.Int64Range(0, size-1).Draw(t, "offset") }
		length := func(offset int64) int64 { return min(rapid.Int64Range(1, 20_000).Draw(t, "length"), size-offset) }
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				at := offset()
				p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, int(length(at)))
				if n, err := unix.Pwrite(fd, p, at); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
				copy(model[at:], p)
			},
			"read": func(t *rapid.T) {
				at := offset()
				p := make([]byte, length(at))
				if n, err := unix.Pread(fd, p, at); n != len(p) || err != nil || !bytes.Equal(p, model[at:at+int64(n)]) {
					t.Fatal(n, err)
				}
			},
			"zero": func(t *rapid.T) {
				at := offset()
				n := length(at)
				mode := rapid.SampledFrom([]uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}).Draw(t, "mode")
				if err := unix.Fallocate(fd, mode, at, n); err != nil {
					t.Fatal(err)
				}
				clear(model[at : at+n])
			},
			"data": func(t *rapid.T) {
				at := offset()
				start, err := unix.Seek(fd, at, unix.SEEK_DATA)
				if errors.Is(err, unix.ENXIO) {
					start, err = size, nil
				}
				if err != nil || start < at || len(bytes.TrimLeft(model[at:start], "\x00")) != 0 {
					t.Fatalf("data after %d at %d, %v", at, start, err)
				}
			},
			"": func(t *rapid.T) {
				if !bytes.Equal(d.bytes(), model) {
					t.Fatal("the device's content differs")
				}
			},
		})
	})
}
