package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/lab/labtest"
)

// TestPassthrough: once the content is whole, opens go to the file that has it, also while others still read through
// this process.
func TestPassthrough(t *testing.T) {
	f := mount(t)
	d := newRAM(1 << 20)
	copy(d.content, random(1<<20))
	d.readOnly = true
	whole := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(whole, d.content, 0o440); err != nil {
		t.Fatal(err)
	}
	var complete atomic.Bool
	path := add(t, f, "image", d, Options{Passthrough: func() *os.File {
		if !complete.Load() {
			return nil
		}
		file, err := os.Open(whole)
		if err != nil {
			t.Error(err)
		}
		return file
	}})
	before := open(t, path, os.O_RDONLY)
	if _, err := before.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if d.reads.Load() == 0 {
		t.Fatal("the device was not read")
	}
	complete.Store(true)
	d.fail(fault.Errorf(fault.Corrupt, "not to be read any more"))
	reads := d.reads.Load()
	first, second := open(t, path, os.O_RDONLY), open(t, path, os.O_RDONLY)
	for _, file := range []*os.File{first, second} {
		if got, err := io.ReadAll(file); err != nil || !bytes.Equal(got, d.bytes()) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	if d.reads.Load() != reads {
		t.Fatalf("the device was read %d times more", d.reads.Load()-reads)
	}
	m, err := unix.Mmap(int(first.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil || !bytes.Equal(m, d.bytes()) {
		t.Errorf("mapped: %v", err)
	}
	unix.Munmap(m)
	if d.reads.Load() != reads {
		t.Errorf("mapped: the device was read %d times more", d.reads.Load()-reads)
	}
	d.fail(nil)
	if _, err := before.ReadAt(make([]byte, 4096), 900_000); err != nil || d.reads.Load() == reads {
		t.Errorf("who opened before: %v, %d reads", err, d.reads.Load()-reads)
	}
	a, _ := before.Stat()
	b, _ := first.Stat()
	if a.Size() != b.Size() || a.Sys().(*syscall.Stat_t).Ino != b.Sys().(*syscall.Stat_t).Ino {
		t.Error("not the same file")
	}
	f.Remove("image")
	if _, err := os.Open(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestPassthroughRefused: what cannot be handed through is read as before.
func TestPassthroughRefused(t *testing.T) {
	f := mount(t)
	for name, give := range map[string]func() *os.File{
		"short":  func() *os.File { file, _ := os.CreateTemp(t.TempDir(), ""); return file },
		"device": func() *os.File { file, _ := os.Open("/dev/zero"); return file },
	} {
		d := newRAM(4096)
		d.readOnly = true
		path := add(t, f, name, d, Options{Passthrough: give})
		if got, err := os.ReadFile(path); err != nil || len(got) != 4096 || d.reads.Load() == 0 {
			t.Errorf("%s: %d bytes, %v, %d reads", name, len(got), err, d.reads.Load())
		}
	}
}

// TestBlocked: a device that waits for its repository holds up nobody else, and who waits for it can be killed.
func TestBlocked(t *testing.T) {
	labtest.Root(t, "dd")
	f := mount(t)
	stuck, well := newRAM(1<<20), newRAM(4096)
	stuck.block = make(chan struct{})
	path := add(t, f, "stuck", stuck, Options{})
	other := open(t, add(t, f, "well", well, Options{}), os.O_RDWR)
	const readers = 40
	var children []*exec.Cmd
	for range readers {
		c := exec.Command("dd", "if="+path, "of=/dev/null", "bs=4k", "count=1")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer c.Process.Kill()
		children = append(children, c)
	}
	until(t, "all readers wait", func() bool { return stuck.blocked.Load() == readers })
	if _, err := other.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	// A signal that does not end a process does not end its read either.
	if err := children[0].Process.Signal(unix.SIGUSR1); err != nil { // dd prints how far it is
		t.Error(err)
	}
	if err := children[1].Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := children[1].Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("killed reader: %v", err)
	}
	until(t, "the killed reader's request ends", func() bool { return stuck.blocked.Load() == readers-1 })
	close(stuck.block)
	for i, c := range children {
		if i == 1 {
			continue
		}
		if err := c.Wait(); err != nil {
			t.Errorf("reader %d: %v", i, err)
		}
	}
}

// TestRemoveEndsRequests, and so does Close: neither waits for a device that does not answer.
func TestRemoveEndsRequests(t *testing.T) {
	for _, how := range []string{"remove", "close"} {
		t.Run(how, func(t *testing.T) {
			f := mount(t)
			d := newRAM(4096)
			d.block = make(chan struct{})
			file := open(t, add(t, f, "disk", d, Options{}), os.O_RDWR)
			done := make(chan error)
			go func() {
				_, err := file.ReadAt(make([]byte, 10), 0)
				done <- err
			}()
			until(t, "the reader waits", func() bool { return d.blocked.Load() == 1 })
			if how == "remove" {
				f.Remove("disk")
			} else if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := <-done; err == nil {
				t.Error("the read succeeded")
			}
			if _, err := file.WriteAt([]byte("x"), 0); err == nil || d.writes.Load() != 0 {
				t.Errorf("written after the end: %v", err)
			}
			if how == "close" {
				if _, err := f.Add("b", d, Options{}); !fault.Is(err, fault.WrongState) {
					t.Error(err)
				}
			}
		})
	}
}

// TestDeadMount: what a killed process left is cleared away, what lives is not.
func TestDeadMount(t *testing.T) {
	labtest.Root(t)
	dir := filepath.Join(t.TempDir(), "mnt")
	t.Cleanup(func() { detach(dir) })
	child, _ := startChild(t, dir, "", "")
	file := open(t, filepath.Join(dir, "a"), os.O_RDONLY)
	if _, err := Mount(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.Busy) {
		t.Errorf("another process serves it: %v", err)
	}
	child.Process.Kill()
	child.Wait()
	until(t, "the kernel notices", func() bool { _, err := os.Stat(dir); return errors.Is(err, unix.ENOTCONN) })
	f, err := Mount(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := os.ReadFile(add(t, f, "a", newRAM(10), Options{})); err != nil || len(got) != 10 {
		t.Error(len(got), err)
	}
	if _, err := file.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("a file of the dead mount can be read")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if here, err := mountsAt(dir); err != nil || len(here) != 0 {
		t.Error(here, err)
	}
}

func TestOtherMountsStay(t *testing.T) {
	labtest.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if _, err := Mount(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.WrongState) {
		t.Error(err)
	}
	if here, _ := mountsAt(dir); len(here) != 1 {
		t.Error(here)
	}
	if _, err := Mount(t.Context(), Config{Dir: "relative"}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Mount(t.Context(), Config{Dir: plain}); err == nil {
		t.Error("mounted on a file")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if f, err := Mount(ended, Config{Dir: filepath.Join(t.TempDir(), "x")}); err == nil {
		f.Close()
		t.Error("mounted though the context had ended")
	}
}

// TestStaysInNamespace: a namespace that gets the mounts of this one does not get this mount.
func TestStaysInNamespace(t *testing.T) {
	labtest.Root(t, "unshare", "cat")
	shared := t.TempDir()
	if err := unix.Mount(shared, shared, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(shared, unix.MNT_DETACH) })
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	child := exec.Command("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", "echo ready; exec cat")
	in, _ := child.StdinPipe()
	out, _ := child.StdoutPipe()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer in.Close()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(shared, "mnt")
	f, err := Mount(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	theirs, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(child.Process.Pid), "mountinfo"))
	if err != nil || regexp.MustCompile(regexp.QuoteMeta(shared)+".* - "+typeName).Match(theirs) || !strings.Contains(string(theirs), shared) {
		t.Errorf("%v\n%s", err, theirs)
	}
	if _, err := os.ReadFile(add(t, f, "a", newRAM(10), Options{})); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if here, err := mountsAt(dir); err != nil || len(here) != 0 {
		t.Errorf("left: %v, %v", here, err)
	}
}

// TestChildrenDoNotKeepTheConnection: programs that this process starts do not inherit it.
func TestChildrenDoNotKeepTheConnection(t *testing.T) {
	mount(t)
	out, err := exec.CommandContext(t.Context(), "sh", "-c", "readlink /proc/self/fd/* /proc/$$/fd/*").Output()
	if strings.Contains(string(out), "/dev/fuse") || len(out) == 0 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestParse(t *testing.T) {
	all := parseMountinfo("22 1 0:21 / / rw shared:1 - ext4 /dev/root rw\n" +
		"36 22 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - fuse.hayloft hayloft rw\nbroken\n40 22 0:5 /\n")
	want := []mounted{{"/", "/", "ext4", "/dev/root", false}, {"/mnt1", "/mnt 2", "fuse.hayloft", "hayloft", true}}
	if len(all) != 2 || all[0] != want[0] || all[1] != want[1] {
		t.Errorf("%+v", all)
	}
	for s, want := range map[string]string{`a\134b`: `a\b`, `\`: `\`, `\9`: `\9`, `\999x`: `\999x`, "plain": "plain"} {
		if got := unescape(s); got != want {
			t.Errorf("%q: %q", s, got)
		}
	}
	for status, want := range map[string]bool{"SigPnd:\t0000000000000100\n": true, "SigPnd:\t0\nShdPnd:\t0000000000000101\n": true,
		"SigPnd:\t0000000000000200\n": false, "SigBlk:\t100\n": false, "": false} {
		if hasKillPending(status) != want {
			t.Errorf("%q", status)
		}
	}
	if isKilled(uint32(os.Getpid())) || isKilled(0) {
		t.Error("this process is not killed")
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add(`36 22 98:0 /mnt1 /mnt\0402 rw - fuse.hayloft hayloft rw`)
	f.Fuzz(func(_ *testing.T, s string) { parseMountinfo(s) })
}

// TestWatchCaller ends with its context.
func TestWatchCaller(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	interrupted := make(chan struct{})
	close(interrupted)
	watchCaller(ctx, interrupted, uint32(os.Getpid()), func() { t.Error("stopped") })
}
