package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/internal/apart"
	"hayloft/internal/leaktest"
	"hayloft/lab/labtest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("HAYLOFT_FUSE_CHILD"); dir != "" {
		serveAndHang(dir)
	}
	leaktest.Main(m)
}

// serveAndHang is a process that will be killed.
func serveAndHang(dir string) {
	unattended, _ := time.ParseDuration(os.Getenv("HAYLOFT_FUSE_UNATTENDED"))
	f, err := Mount(context.Background(), Config{Dir: dir, State: os.Getenv("HAYLOFT_FUSE_STATE"), Unattended: unattended})
	if err == nil {
		_, err = f.Add("a", newRAM(4096), Options{})
	}
	if err == nil {
		err = addSurvivors(f, os.Getenv("HAYLOFT_FUSE_WHOLE"), func() { fmt.Println("asked"); select {} })
	}
	fmt.Println("mounted", err)
	if os.Getenv("HAYLOFT_FUSE_OWN") != "" {
		_ = apart.Run(context.Background(), func() error {
			fd, err := unix.Open(filepath.Join(dir, "disk"), unix.O_RDONLY, 0)
			if err == nil {
				_, err = unix.Pread(fd, make([]byte, 4096), trap)
			}
			return err
		})
	}
	select {}
}

func mount(t *testing.T) *FileSystem {
	t.Helper()
	labtest.Root(t)
	dir := filepath.Join(t.TempDir(), "mnt")
	f, err := Mount(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if here, err := mountsAt(dir); err != nil || len(here) != 0 {
			t.Errorf("left: %v, %v", here, err)
		}
	})
	return f
}

func add(t *testing.T, f *FileSystem, name string, d export.Device, o Options) string {
	t.Helper()
	path, err := f.Add(name, d, o)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func random(n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(b)
	return b
}

// longest is how long tests wait for what must come, on a machine with much else to do.
const longest = 2 * time.Minute

func until(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for began := time.Now(); !reached(); time.Sleep(time.Millisecond) {
		if time.Since(began) > longest {
			t.Fatalf("%s: not within %v", what, longest)
		}
	}
}

func TestReadWrite(t *testing.T) {
	f := mount(t)
	d := newRAM(3<<20 + 777)
	path := add(t, f, "disk", d, Options{UID: 1234, GID: 2345})
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); fi.Size() != d.Size() || fi.Mode() != 0o600 || st.Uid != 1234 || st.Gid != 2345 || time.Since(fi.ModTime()) > longest {
		t.Errorf("%v %v %+v", fi.Size(), fi.Mode(), st)
	}
	file := open(t, path, os.O_RDWR)
	want := random(int(d.Size()))
	if _, err := file.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.bytes(), want) {
		t.Error("the device has something else")
	}
	got := make([]byte, len(want)+100)
	if n, err := file.ReadAt(got, 0); err != io.EOF || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if n, err := file.ReadAt(got[:1001], 4095); err != nil || !bytes.Equal(got[:n], want[4095:4095+1001]) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if err := file.Sync(); err != nil || d.flushes.Load() != 1 {
		t.Errorf("%v, %d flushes", err, d.flushes.Load())
	}
	if n, err := unix.Pwrite(int(file.Fd()), []byte("xy"), d.Size()-1); n != 1 || err != nil {
		t.Errorf("over the end: %d, %v", n, err)
	}
	if n, err := unix.Pwrite(int(file.Fd()), []byte("y"), d.Size()); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("beyond the end: %d, %v", n, err)
	}
	if err := file.Truncate(d.Size()); err != nil {
		t.Errorf("truncated to what it is: %v", err)
	}
	for what, err := range map[string]error{"truncate": file.Truncate(1), "chmod": os.Chmod(path, 0o777), "chown": os.Chown(path, 1, 1),
		"remove": os.Remove(path), "create": os.WriteFile(path+"x", nil, 0o600)} {
		if err == nil {
			t.Errorf("%s: allowed", what)
		}
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "disk" {
		t.Error(entries, err)
	}
}

func TestManyNames(t *testing.T) {
	f := mount(t)
	for i := range 500 {
		add(t, f, fmt.Sprintf("disk-%d-%s", i, strings.Repeat("x", 100)), newRAM(1), Options{})
	}
	if entries, err := os.ReadDir(f.dir); err != nil || len(entries) != 500 {
		t.Error(len(entries), err)
	}
}

func TestZeroes(t *testing.T) {
	f := mount(t)
	d := newRAM(1 << 20)
	copy(d.content, random(1<<20))
	file := open(t, add(t, f, "disk", d, Options{}), os.O_RDWR)
	fd := int(file.Fd())
	for _, row := range []struct {
		mode           uint32
		offset, length int64
		want           error
		flags          export.ZeroFlags
	}{
		{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 8192, 4096, nil, export.ZeroFlags{Trim: true}},
		{unix.FALLOC_FL_ZERO_RANGE, 100, 77, nil, export.ZeroFlags{NoHole: true}},
		{unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, 1<<20 - 10, 99, nil, export.ZeroFlags{NoHole: true}},
		{unix.FALLOC_FL_ZERO_RANGE, 1<<20 - 10, 99, unix.ENOSPC, export.ZeroFlags{}},
		{unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, unix.EOPNOTSUPP, export.ZeroFlags{}},
		{0, 0, 4096, unix.EOPNOTSUPP, export.ZeroFlags{}},
	} {
		before := len(d.zeros())
		err := unix.Fallocate(fd, row.mode, row.offset, row.length)
		if !errors.Is(err, row.want) {
			t.Errorf("mode %#x: %v", row.mode, err)
		}
		if row.want == nil && (len(d.zeros()) != before+1 || d.zeros()[before] != row.flags) {
			t.Errorf("mode %#x: %+v", row.mode, d.zeros()[before:])
		}
	}
	if d.mu.Lock(); d.zeroed != 4096+77+10 {
		t.Errorf("%d bytes zeroed", d.zeroed)
	}
	d.mu.Unlock()
}

func TestHoles(t *testing.T) {
	f := mount(t)
	d := newRAM(1 << 20)
	for _, at := range []int{65536, 65536 + 4096, 900_000} {
		d.content[at] = 1
	}
	file := open(t, add(t, f, "disk", d, Options{}), os.O_RDWR)
	for _, row := range []struct {
		from   int64
		whence int
		want   int64
		err    error
	}{
		{0, unix.SEEK_DATA, 65536, nil}, {0, unix.SEEK_HOLE, 0, nil}, {65536, unix.SEEK_HOLE, 65536 + 8192, nil}, {65537, unix.SEEK_DATA, 69632, nil},
		{80_000, unix.SEEK_DATA, 897024, nil}, {1_000_000, unix.SEEK_DATA, 0, unix.ENXIO}, {1_000_000, unix.SEEK_HOLE, 1_000_000, nil},
		{1 << 20, unix.SEEK_HOLE, 0, unix.ENXIO}, {1 << 21, unix.SEEK_DATA, 0, unix.ENXIO},
	} {
		got, err := unix.Seek(int(file.Fd()), row.from, row.whence)
		if !errors.Is(err, row.err) || err == nil && got != row.want {
			t.Errorf("from %d whence %d: %d, %v", row.from, row.whence, got, err)
		}
	}
}

func TestErrors(t *testing.T) {
	f := mount(t)
	for _, row := range []struct {
		fail error
		want syscall.Errno
	}{
		{fault.Errorf(fault.OutOfSpace, "full"), unix.ENOSPC}, {fault.Errorf(fault.Unavailable, "away"), unix.ETIMEDOUT},
		{fault.Errorf(fault.Corrupt, "bad"), unix.EBADMSG}, {fault.Errorf(fault.Permission, "no"), unix.EACCES},
		{fault.Errorf(fault.Unsupported, "no"), unix.EOPNOTSUPP}, {fault.Errorf(fault.Busy, "no"), unix.EBUSY},
		{fmt.Errorf("disk: %w", unix.EIO), unix.EIO}, {fmt.Errorf("disk: %w", unix.ENOSPC), unix.ENOSPC}, {errors.New("odd"), unix.EIO}, {unix.ENOSYS, unix.EIO},
	} {
		d := newRAM(4096)
		d.fail(row.fail)
		file := open(t, add(t, f, "disk", d, Options{}), os.O_RDWR)
		_, err1 := file.ReadAt(make([]byte, 10), 0)
		_, err2 := file.WriteAt(make([]byte, 10), 0)
		for i, err := range []error{err1, err2, file.Sync()} {
			if !errors.Is(err, row.want) {
				t.Errorf("%v: %d: %v", row.fail, i, err)
			}
		}
		f.Remove("disk")
	}
}

func TestNames(t *testing.T) {
	f := mount(t)
	for _, name := range []string{"", ".", "..", "a/b", "\x00", ".go-fuse-epoll-hack"} {
		if _, err := f.Add(name, newRAM(1), Options{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := f.Add("a", newRAM(1), Options{Mode: os.ModeSetuid | 0o755}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	add(t, f, "a", newRAM(1), Options{})
	if _, err := f.Add("a", newRAM(1), Options{}); !fault.Is(err, fault.Exists) {
		t.Error(err)
	}
	f.Remove("a")
	f.Remove("a")
	path := add(t, f, "a", newRAM(5), Options{})
	if fi, err := os.Stat(path); err != nil || fi.Size() != 5 {
		t.Errorf("%v %v", fi, err)
	}
}

// TestReadOnly: content that does not change stays in the page cache when the file is closed, and is read ahead.
func TestReadOnly(t *testing.T) {
	f := mount(t)
	d := &quickRAM{ram: newRAM(4 << 20)}
	copy(d.content, random(4<<20))
	d.readOnly = true
	path := add(t, f, "image", d, Options{})
	for range 2 {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, d.content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	// 4 MiB in requests of half a MiB, with small ones in the beginning; and nothing the second time.
	if n := d.quick.Load(); n < 8 || n > 24 || d.reads.Load() != 0 {
		t.Errorf("%d quick reads, %d others", n, d.reads.Load())
	}
	if _, err := os.OpenFile(path, os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
	file := open(t, path, os.O_RDONLY)
	if err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1); err == nil {
		t.Error("a hole in what is read-only")
	}
}

// TestPermissions: only root and whom a file is for get at it.
func TestPermissions(t *testing.T) {
	labtest.Root(t, "dd")
	f := mount(t)
	// t.TempDir is for root alone; the way there is opened for this test.
	for dir := filepath.Dir(f.dir); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	path := add(t, f, "disk", newRAM(4096), Options{UID: 4242, GID: 4343, Mode: 0o640})
	for _, row := range []struct {
		uid, gid      uint32
		read, written bool
	}{{0, 0, true, true}, {4242, 1, true, true}, {1, 4343, true, false}, {65534, 65534, false, false}} {
		run := func(args ...string) bool {
			c := exec.CommandContext(t.Context(), "dd", append(args, "bs=512", "count=1", "conv=notrunc", "status=none")...)
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: row.uid, Gid: row.gid}}
			return c.Run() == nil
		}
		if read, written := run("if="+path, "of=/dev/null"), run("if=/dev/zero", "of="+path); read != row.read || written != row.written {
			t.Errorf("user %d group %d: read %v written %v", row.uid, row.gid, read, written)
		}
	}
	c := exec.CommandContext(t.Context(), "ls", f.dir)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4242, Gid: 4343}}
	if out, err := c.CombinedOutput(); err == nil {
		t.Errorf("others can list: %s", out)
	}
}

func TestFio(t *testing.T) {
	labtest.Root(t, "fio")
	f := mount(t)
	d := newRAM(16 << 20)
	path := add(t, f, "disk", d, Options{})
	for _, args := range [][]string{
		{"--ioengine=psync", "--rw=randrw", "--bs=4k"},
		{"--ioengine=libaio", "--direct=1", "--iodepth=16", "--rw=randwrite", "--bsrange=512-128k", "--fsync=16"},
		{"--ioengine=mmap", "--rw=write", "--bs=64k"},
	} {
		args = append(args, "--name=x", "--filename="+path, "--size=16m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=7")
		c := exec.CommandContext(t.Context(), "fio", args...)
		c.Dir = t.TempDir()
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	if d.writes.Load() == 0 || d.reads.Load() == 0 {
		t.Error("the device was not used")
	}
}
