package lxc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/device"
	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
)

const (
	cgroupMount = "/sys/fs/cgroup"
	lockDir     = "/run/lxc" // where lxc leaves a directory per container; in a container's namespace it goes with it
)

// launch runs lxc-start, which leaves the monitor behind and returns when the container runs. What a failed
// launch left is the caller's to clear.
func (d *Driver) launch(turn context.Context, m hypervisor.Machine) (process, error) {
	p := pathsOf(m)
	stderr, err := os.OpenFile(p.stderr(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return process{}, err
	}
	defer stderr.Close()
	group, err := d.group(m)
	if err != nil {
		return process{}, err
	}
	program, err := exec.LookPath("lxc-start")
	if err != nil {
		return process{}, fault.Errorf(fault.Unsupported, "program lxc-start is not installed")
	}
	cmd := exec.CommandContext(turn, program, "--daemon", "--lxcpath", p.dir, "--name", containerName(m.ID),
		"--rcfile", p.configuration(), "--pidfile", p.pid())
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	d.topUsers.RLock()
	defer d.topUsers.RUnlock()
	if err := startInside(cmd, group, m); err != nil {
		return process{}, err
	}
	if err := cmd.Wait(); err != nil {
		if turn.Err() != nil {
			return process{}, context.Cause(turn)
		}
		return process{}, fmt.Errorf("lxc-start: %w: %s", err, complaints(p))
	}
	text, err := os.ReadFile(p.pid())
	if err != nil {
		return process{}, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return process{}, fmt.Errorf("lxc-start: its pid file holds %q", text)
	}
	monitor, err := identify(pid, d.hostBoot)
	if err != nil {
		status, reason := verdict(string(readTail(p.log(), logTail)))
		return process{}, fmt.Errorf("lxc-start: the container is %s at once: %s; %s", status, reason, complaints(p))
	}
	return monitor, nil
}

// group makes the container's control group; nil where the host has none that we may write.
func (d *Driver) group(m hypervisor.Machine) (*cgroup.Group, error) {
	if !d.tree.Available() {
		return nil, nil
	}
	return d.tree.Create(containerName(m.ID), cgroup.Limits{CPU: m.CPU, MemoryMB: m.MemoryMB})
}

// startInside starts cmd in a mount namespace of its own with the container's root mounted, and in the
// group's hierarchies: in v1's directly, in v2's in a child, since a v2 group that limits its children
// holds no processes itself. It is done by a thread that becomes what the child shall be and then ends.
func startInside(cmd *exec.Cmd, group *cgroup.Group, m hypervisor.Machine) error {
	var tasks []string
	if group != nil {
		for _, path := range group.Paths() {
			if _, err := os.Stat(filepath.Join(path, "cgroup.controllers")); err != nil {
				tasks = append(tasks, filepath.Join(path, "tasks"))
				continue
			}
			first := filepath.Join(path, "start")
			if err := os.Mkdir(first, 0o755); err != nil && !os.IsExist(err) {
				return err
			}
			fd, err := unix.Open(first, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return &os.PathError{Op: "open", Path: first, Err: err}
			}
			defer unix.Close(fd)
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
		}
	}
	return onOwnThread(func() error {
		for _, file := range tasks {
			if err := os.WriteFile(file, []byte(strconv.Itoa(unix.Gettid())), 0); err != nil {
				return fmt.Errorf("enter control group: %w", err)
			}
		}
		if err := privateView(); err != nil {
			return err
		}
		if err := mountRoot(m.Disks[0].Device, pathsOf(m).root()); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// onOwnThread runs fn on a thread that ends with it, so that what fn does to its thread stays there. The
// process's first thread cannot end; a goroutine that happens to be on it holds it while another works.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	var thread int
	var try func()
	try = func() {
		runtime.LockOSThread()
		if thread = unix.Gettid(); thread != unix.Getpid() {
			result <- fn()
			return // still locked: the thread ends
		}
		defer runtime.UnlockOSThread()
		other := make(chan struct{})
		go func() { defer close(other); try() }()
		<-other
	}
	go try()
	err := <-result
	// Until the thread is gone, v1 lists this whole process in the group that the thread entered, and
	// killing the group would be the end of us.
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		if _, gone := os.Stat("/proc/self/task/" + strconv.Itoa(thread)); gone != nil {
			return err
		}
		time.Sleep(wait)
	}
}

// privateView gives the calling thread a mount namespace that the host's mounts reach but that never
// reaches back, in which /sys/fs/cgroup is cgroup2, the one layout that every lxc starts on.
func privateView() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := os.MkdirAll(lockDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", lockDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("mount %s in the container's namespace: %w", lockDir, err)
	}
	// Of the caller's network namespace, where lxc looks for the bridge: that of /sys may be another.
	if err := mountFresh("sysfs", "/sys"); err != nil {
		return err
	}
	_ = mountFresh("securityfs", "/sys/kernel/security") // only with AppArmor or the like
	return mountFresh("cgroup2", cgroupMount)
}

func mountFresh(kind, target string) error {
	if err := unix.Mount(kind, target, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s on %s in the container's namespace: %w", kind, target, err)
	}
	return nil
}

func mountRoot(root device.Device, target string) error {
	options := "lowerdir=" + root.Lower + ",upperdir=" + root.Upper + ",workdir=" + root.Work
	var flags uintptr
	if root.ReadOnly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
		return fmt.Errorf("overlay of %s on %s: %w", root.Upper, root.Lower, err)
	}
	return nil
}

// clearHidden removes the container's groups in the cgroup2 hierarchy on a host that does not mount it.
func (d *Driver) clearHidden(ctx context.Context, id int) error {
	return onOwnThread(func() error {
		if err := privateView(); err != nil {
			return err
		}
		top := filepath.Join(cgroupMount, d.tree.Root())
		if err := rmtree(ctx, filepath.Join(top, containerName(id))); err != nil {
			return err
		}
		d.clearTop(ctx, top)
		return nil
	})
}

// clearTop removes the group above all containers when it is empty, but not below the hands of an lxc-start that has just
// made it or found it there: the container that starts takes it away in the end.
func (d *Driver) clearTop(ctx context.Context, top string) {
	d.clearing.Lock()
	defer d.clearing.Unlock()
	if !d.topUsers.TryLock() {
		return
	}
	defer d.topUsers.Unlock()
	_ = rmdir(ctx, top) // others are in it
}

// rmtree removes an empty control group with those inside it, the guest's own among them.
func rmtree(ctx context.Context, dir string) error {
	inside, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
	for _, file := range inside {
		if err := rmtree(ctx, filepath.Dir(file)); err != nil {
			return err
		}
	}
	return rmdir(ctx, dir)
}

// rmdir removes an empty control group; its last process may still be ending.
func rmdir(ctx context.Context, dir string) error {
	for {
		err := os.Remove(dir)
		if err == nil || os.IsNotExist(err) {
			return nil
		}
		if entries, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs")); len(entries) > 0 {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}
