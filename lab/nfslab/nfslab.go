// Package nfslab is the kernel's NFS server, version 4 only, for tests that run in a kernel guest (labtest.Guest).
package nfslab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

// Lease is how long the server keeps the locks of a client that it does not hear of: the least that it allows.
const Lease = 10 * time.Second

// patience ends a hang: a guest may be slow.
const patience = 5 * time.Minute

const control = "/proc/fs/nfsd"

// Server exports one directory to everybody, root included. It ends with the test.
type Server struct {
	Dir string
	t   testing.TB
}

// Disk makes a file system of the kind on a disk of the guest, and mounts it in a directory until the test ends.
func Disk(t testing.TB, kind string) string {
	t.Helper()
	disk := labtest.Disks(t, 1)[0]
	force := "-f"
	if kind == "ext4" {
		force = "-F"
	}
	dir := t.TempDir()
	run(t, "mkfs."+kind, "-q", force, disk)
	if err := unix.Mount(disk, dir, kind, 0, ""); err != nil {
		t.Fatalf("mount %s of %s: %v", kind, disk, err)
	}
	t.Cleanup(func() {
		for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) { // the server may still have files of it
			if err := unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
				if err != nil {
					t.Errorf("unmount %s: %v", dir, err)
				}
				return
			}
		}
		t.Errorf("%s is in use", dir)
	})
	return dir
}

// Start exports dir.
func Start(t testing.TB, dir string) *Server {
	t.Helper()
	labtest.Guest(t)
	s := &Server{Dir: dir, t: t}
	if err := unix.Mount("nfsd", control, "nfsd", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatalf("mount nfsd: %v", err)
	}
	mountd := exec.Command("rpc.mountd", "-F", "-N", "2", "-N", "3")
	mountd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	mountd.Stderr = os.Stderr
	if err := mountd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mountd.Process.Kill()
		mountd.Wait()
	})
	s.waitForMountd(mountd.Process.Pid)
	run(t, "exportfs", "-i", "-o", "rw,no_root_squash,no_subtree_check,insecure,sync,crossmnt", "*:"+dir)
	t.Cleanup(func() {
		s.Stop()
		run(t, "exportfs", "-u", "*:"+dir)
		run(t, "exportfs", "-f")
	})
	for _, name := range []string{"nfsv4leasetime", "nfsv4gracetime"} {
		s.set(name, fmt.Sprint(int(Lease.Seconds())))
	}
	s.Resume()
	return s
}

// waitForMountd waits until it listens to the kernel, which has clients wait for long when nobody does.
func (s *Server) waitForMountd(pid int) {
	s.t.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, f := range files {
			if to, err := os.Readlink(f); err == nil && strings.Contains(to, "/rpc/nfsd.fh/channel") {
				return
			}
		}
	}
	s.t.Fatal("rpc.mountd does not listen")
}

func (s *Server) set(name, value string) {
	s.t.Helper()
	if err := os.WriteFile(control+"/"+name, []byte(value), 0); err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
}

// Resume starts it again after Stop. What clients had is not asked for: a server that lost its memory.
func (s *Server) Resume() {
	s.t.Helper()
	run(s.t, "rpc.nfsd", "-N", "3", "-V", "4.2", "-U", "4")
	s.set("v4_end_grace", "Y")
}

// Stop ends the server: connections end, new ones are refused.
func (s *Server) Stop() {
	s.t.Helper()
	run(s.t, "rpc.nfsd", "0")
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if out, err := (command.Exec{}).Run(ctx, command.Cmd{Name: name, Args: args}); err != nil {
		t.Fatalf("%s %s: %v %s", name, strings.Join(args, " "), err, out)
	}
}
