package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"hayloft/image/contextdisk"
	"hayloft/lab/fleet"
	"hayloft/network"
	"hayloft/network/bridge"
)

// lxcStarter runs lxc-start with the pattern's configuration, in one mount namespace that sees cgroup2 alone and
// has all overlays mounted.
type lxcStarter struct {
	pattern *pattern
	site    *fleet.Site
	bridge  *bridge.Driver
	mounts  int // file descriptor of the mount namespace, 0 before it is made
}

func (l *lxcStarter) prepare(ctx context.Context, twins []twin) error {
	base, err := l.base()
	if err != nil {
		return err
	}
	return l.site.Namespace.Inside(func() error {
		if err := l.view(); err != nil {
			return err
		}
		for _, t := range twins {
			if err := l.one(ctx, t, base); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
		fd, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		l.mounts = fd
		return err
	})
}

// base is the directory with the unpacked root file system, in this site.
func (l *lxcStarter) base() (string, error) {
	roots, err := filepath.Glob(filepath.Join(l.site.Dir, storeDir, "base", "*", "tree", "root"))
	if err != nil {
		return "", err
	}
	if len(roots) != 1 {
		return "", fmt.Errorf("%d root file systems in %s, want 1", len(roots), l.site.Dir)
	}
	return roots[0], nil
}

// view gives the calling thread the mount namespace.
func (l *lxcStarter) view() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	for _, m := range []struct{ kind, target string }{{"tmpfs", "/run/lxc"}, {"sysfs", "/sys"}, {"cgroup2", "/sys/fs/cgroup"}} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.target, m.kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

func (l *lxcStarter) one(ctx context.Context, t twin, base string) error {
	upper, work, root := filepath.Join(t.dir, "upper"), filepath.Join(t.dir, "work"), filepath.Join(t.dir, "lxc/rootfs")
	for _, dir := range []string{upper, work, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir="+base+",upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	files, err := l.pattern.context(t, l.site.Prober.Key())
	if err != nil {
		return err
	}
	if err := contextdisk.WriteDirectory(filepath.Join(t.dir, "context"), files, 0, 0); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(t.dir, "lxc/config"), []byte(t.change.Replace(l.pattern.config)), 0o600); err != nil {
		return err
	}
	_, err = l.bridge.Plug(ctx, theNetwork(), t.port(network.Veth))
	return err
}

func (l *lxcStarter) start(ctx context.Context, t twin) error {
	dir := filepath.Join(t.dir, "lxc")
	stderr, err := os.OpenFile(filepath.Join(dir, "stderr"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer stderr.Close()
	cmd := exec.CommandContext(ctx, "lxc-start", "--daemon", "--lxcpath", dir, "--name", "vm-"+strconv.Itoa(t.id),
		"--rcfile", filepath.Join(dir, "config"), "--pidfile", filepath.Join(dir, "pid"))
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = l.site.Namespace.Inside(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(l.mounts, unix.CLONE_NEWNS); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		said, _ := os.ReadFile(stderr.Name())
		return fmt.Errorf("lxc-start: %w: %s", err, said)
	}
	return nil
}

func (l *lxcStarter) close() {
	if l.mounts != 0 {
		unix.Close(l.mounts)
	}
}
