package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/leaktest"
	"hayloft/lab/labtest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func makeFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

// tagOf is unique to this test and process, since the kernel's devices are everybody's.
func tagOf(t *testing.T, n int) string { return fmt.Sprintf("test-%d-%d", os.Getpid(), n) }

func attached(t *testing.T, path string, o Options) string {
	t.Helper()
	device, err := Attach(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Where the test has detached it, its number may be somebody else's by now.
		if err := Detach(context.Background(), device, path, o.Tag); err != nil && !fault.Is(err, fault.WrongState) {
			t.Error(err)
		}
	})
	return device
}

func TestAttach(t *testing.T) {
	labtest.Root(t)
	path, tag := makeFile(t, 1<<20+100), tagOf(t, 1)
	device := attached(t, path, Options{Tag: tag})
	if found, err := Find(t.Context(), path, tag); err != nil || found != device {
		t.Error(found, err)
	}
	if _, err := Attach(t.Context(), path, Options{Tag: tag}); !fault.Is(err, fault.Exists) || !strings.Contains(err.Error(), device) {
		t.Error(err)
	}
	file, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if size, err := file.Seek(0, 2); err != nil || size != 1<<20 {
		t.Error(size, err)
	}
	if _, err := file.WriteAt([]byte("hello"), 12345); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil || string(content[12345:12350]) != "hello" {
		t.Error(err, "not in the file")
	}
	file.Close()
	if err := Detach(t.Context(), device, path, tagOf(t, 2)); !fault.Is(err, fault.WrongState) || !strings.Contains(err.Error(), tag) {
		t.Errorf("another's tag: %v", err)
	}
	if err := Detach(t.Context(), device, path, tag); err != nil {
		t.Fatal(err)
	}
	// From here on its number may be somebody else's.
	if n, _ := numberOf(device); backingOf(n) == path {
		t.Error("still attached")
	}
	if err := Detach(t.Context(), device, path, tag); err != nil && !fault.Is(err, fault.WrongState) {
		t.Errorf("again: %v", err)
	}
	if _, err := Find(t.Context(), path, tag); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestOptions(t *testing.T) {
	labtest.Root(t)
	path := makeFile(t, 1<<20)
	readOnly := attached(t, path, Options{Tag: tagOf(t, 1), ReadOnly: true, DirectIO: true})
	if file, err := os.OpenFile(readOnly, os.O_RDWR, 0); err == nil {
		_, err = file.WriteAt([]byte("x"), 0)
		file.Close()
		if err == nil {
			t.Error("written to a read-only device")
		}
	}
	large := attached(t, path, Options{Tag: tagOf(t, 2), SectorSize: 4096})
	file, err := os.Open(large)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if n, err := unix.IoctlGetInt(int(file.Fd()), unix.BLKSSZGET); err != nil || n != 4096 {
		t.Errorf("sector size %d, %v", n, err)
	}
	for name, o := range map[string]Options{"no tag": {}, "long": {Tag: strings.Repeat("x", maxTag+1)}, "odd": {Tag: "a\nb"}, "zero": {Tag: "a\x00"},
		"sector": {Tag: "a", SectorSize: 513}, "small sector": {Tag: "a", SectorSize: 256}} {
		if _, err := Attach(t.Context(), path, o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	longest := strings.Repeat("y", maxTag)
	device := attached(t, path, Options{Tag: longest, ReadOnly: true})
	if found, err := Find(t.Context(), path, longest); err != nil || found != device {
		t.Errorf("the longest tag: %s, %v", found, err)
	}
}

func TestBadFiles(t *testing.T) {
	labtest.Root(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, class := range map[string]fault.Class{"/nowhere/at/all": fault.NotFound, t.TempDir(): fault.Internal, fifo: fault.Invalid, "/dev/null": fault.Invalid} {
		if _, err := Attach(t.Context(), path, Options{Tag: tagOf(t, 1)}); !fault.Is(err, class) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, device := range []string{"", "/dev/sda", "/dev/loop", "/dev/loop-1", "/dev/loop01", "/dev/loop9999999", "/dev/loop0/../sda", "loop0"} {
		if err := Detach(t.Context(), device, "/a", "a"); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", device, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	path := makeFile(t, 4096)
	if device, err := Attach(ended, path, Options{Tag: tagOf(t, 1)}); err == nil {
		Detach(t.Context(), device, path, tagOf(t, 1))
		t.Error("attached though the context had ended")
	}
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(fifo), "/nowhere"} {
		if after, err := List(t.Context(), dir); err != nil || len(after) != 0 {
			t.Errorf("left: %v, %v", after, err)
		}
	}
}

// TestOthersStay: what somebody else attached is neither listed nor detached.
func TestOthersStay(t *testing.T) {
	labtest.Root(t, "losetup")
	path := makeFile(t, 1<<20)
	out, err := exec.Command("losetup", "--find", "--show", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "--detach", theirs).Run()
	if err := Detach(t.Context(), theirs, path, tagOf(t, 1)); !fault.Is(err, fault.WrongState) {
		t.Error(err)
	}
	if n, _ := numberOf(theirs); !isAttached(n) {
		t.Error("it was detached")
	}
	all, err := List(t.Context(), filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if a.Device == theirs {
			t.Errorf("listed as %q", a.Tag)
		}
	}
}

// TestManyAtOnce: callers that race for the next free device all get one of their own.
func TestManyAtOnce(t *testing.T) {
	labtest.Root(t)
	const many = 20
	path := makeFile(t, 1<<20)
	devices := make([]string, many)
	var group sync.WaitGroup
	for i := range many {
		group.Go(func() {
			var err error
			if devices[i], err = Attach(t.Context(), path, Options{Tag: tagOf(t, i), ReadOnly: true}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	distinct := map[string]bool{}
	for i, device := range devices {
		distinct[device] = true
		if found, err := Find(t.Context(), path, tagOf(t, i)); err != nil || found != device {
			t.Error(i, found, err)
		}
	}
	if len(distinct) != many {
		t.Errorf("%d devices", len(distinct))
	}
	for i, device := range devices {
		group.Go(func() {
			if err := Detach(t.Context(), device, path, tagOf(t, i)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if all, err := List(t.Context(), filepath.Dir(path)); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

// TestGivenUp: an attachment that is given up in the middle leaves no device.
func TestGivenUp(t *testing.T) {
	labtest.Root(t)
	path, tag := makeFile(t, 1<<20), tagOf(t, 1)
	for i := range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Duration(i)*20*time.Microsecond, cancel)
		device, err := Attach(ctx, path, Options{Tag: tag})
		timer.Stop()
		cancel()
		switch {
		case err == nil:
			if err := Detach(t.Context(), device, path, tag); err != nil {
				t.Fatal(err)
			}
		case fault.Is(err, fault.Exists): // one that was given up is on its way out
		case !errors.Is(err, context.Canceled):
			t.Fatal(err)
		}
	}
	var left []Attached
	for limit := time.Now().Add(2 * time.Minute); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		var err error
		if left, err = List(t.Context(), filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("left: %v", left)
	for _, a := range left {
		if err := Detach(context.Background(), a.Device, path, tag); err != nil {
			t.Error(err)
		}
	}
}

// TestInUse: a device that somebody has open is freed when they close it.
func TestInUse(t *testing.T) {
	labtest.Root(t)
	tag := tagOf(t, 1)
	path := makeFile(t, 1<<20)
	device := attached(t, path, Options{Tag: tag})
	file, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Detach(ctx, device, path, tag); !fault.Is(err, fault.Busy) {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- Detach(t.Context(), device, path, tag) }()
	file.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNode: a node that nobody made is made, and what is there instead of one is not taken for it.
func TestNode(t *testing.T) {
	labtest.Root(t)
	dir := t.TempDir()
	fd, err := openNode(dir, 0, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Stat(dir+"/loop0", &st); err != nil || st.Rdev != unix.Mkdev(7, 0) || st.Mode&0o077 != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := os.WriteFile(dir+"/loop1", []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(dir+"/loop2", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 2; n++ {
		if _, err := openNode(dir, n, unix.O_RDWR); !fault.Is(err, fault.WrongState) {
			t.Error(err)
		}
	}
	if b, _ := os.ReadFile(dir + "/loop1"); !bytes.Equal(b, []byte("a file")) {
		t.Error("the file was touched")
	}
}
