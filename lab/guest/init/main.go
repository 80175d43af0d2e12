// Command init is the first process of the kernel guest: it sets up what a Debian would, and does what the outside asks
// for over a serial port.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// environment is what every program in the guest starts with.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "TERM=dumb", "USER=root"}

func main() {
	var err error
	if os.Getpid() == 1 {
		err = first()
	} else {
		err = serve(context.Background())
	}
	if err != nil {
		fmt.Println("init:", err)
	}
	if os.Getpid() == 1 {
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}

// first is process 1: it mounts, starts the process that serves, and buries orphans until that ends.
func first() error {
	if err := mountAll(); err != nil {
		return err
	}
	server := exec.Command("/proc/self/exe")
	server.Env, server.Stdout, server.Stderr = environment, os.Stdout, os.Stderr
	if err := server.Start(); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid == server.Process.Pid {
			return err
		}
	}
}

type mount struct{ kind, target, options string }

var mounts = []mount{
	{"devpts", "/dev/pts", "ptmxmode=0666"}, {"tmpfs", "/dev/shm", ""}, {"tmpfs", "/run", "mode=0755"},
	{"cgroup2", "/sys/fs/cgroup", ""},
}

func mountAll() error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.target, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, dir := range []string{"/run/lock", "/run/lvm", "/run/sshd", "/run/rpcbind", "/run/user"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return unix.Sethostname([]byte("guest"))
}
