package golden

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// Debian's release, and what the image holds besides what debootstrap calls minbase.
const (
	debianSuite  = "bookworm"
	debianMirror = "http://deb.debian.org/debian"
)

var debianPackages = []string{"systemd", "systemd-sysv", "udev", "dbus", "openssh-server", "cloud-init", "sudo", kernelMeta,
	"initramfs-tools", "iproute2", "ifupdown", "netbase", "zstd"}

var debianLayout = layout{id: 0x6e616964, fatStart: 1 * mebibyte, fatSize: 64 * mebibyte, rootStart: 65 * mebibyte, rootSize: 1983 * mebibyte}

// debianFiles are what is written over the packages' own configuration.
var debianFiles = map[string]string{
	"etc/apt/sources.list": "deb " + debianMirror + " bookworm main\ndeb " + debianMirror + " bookworm-updates main\n" +
		"deb http://deb.debian.org/debian-security bookworm-security main\n",
	"etc/hostname":                         "debian\n",
	"etc/fstab":                            "LABEL=debian / ext4 errors=remount-ro 0 1\n",
	"etc/cloud/cloud.cfg.d/90_lab.cfg":     "datasource_list: [ OpenNebula, None ]\ndisable_root: false\n",
	"etc/machine-id":                       "", // each clone makes its own
	"etc/network/interfaces.d/.keep":       "",
	"etc/systemd/system.conf.d/90lab.conf": "[Manager]\nDefaultTimeoutStartSec=300\n", // a CPU in software is slow
}

// BuildDebian returns the path of "debian", a whole disk of 2 GiB with a real distribution: systemd, OpenSSH, and a
// cloud-init that reads OpenNebula's context disk. It is made by debootstrap, as root: scripts of packages run in a
// directory of their own (chroot), and services are kept from starting. Errors: Unsupported, Unavailable as Build.
func BuildDebian(ctx context.Context, o Options) (string, error) {
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if o.Dir == "" {
		dir, err := DefaultDir()
		if err != nil {
			return "", err
		}
		o.Dir = dir
	}
	if err := checkTools(); err != nil {
		return "", err
	}
	if os.Geteuid() != 0 {
		return "", fault.Errorf(fault.Permission, "the image debian is made by root")
	}
	run := command.Exec{}
	name, err := debianKey(ctx, run)
	if err != nil {
		return "", err
	}
	dir, err := kept(ctx, o.Dir, name, func(ctx context.Context, scratch, dir string) error {
		d := debian{run: run, root: filepath.Join(scratch, "debian"), scratch: scratch, log: o.Log}
		if err := d.install(ctx); err != nil {
			return fmt.Errorf("image debian: %w", err)
		}
		return d.image(ctx, filepath.Join(dir, "debian.img"))
	})
	return filepath.Join(dir, "debian.img"), err
}

// debianKey changes when Debian has a new version of what matters, or we put in something else.
func debianKey(ctx context.Context, run command.Runner) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, debianSuite, debianPackages, debianLayout, debianFiles)
	out, err := run.Run(ctx, command.Cmd{Name: "apt-get", Args: []string{"download", "--print-uris", "systemd", "openssh-server", "cloud-init", kernelMeta}})
	if err != nil {
		return "", aptError("systemd, openssh-server, cloud-init", err)
	}
	fmt.Fprintln(h, parseURIs(string(out)))
	return "debian-" + hex.EncodeToString(h.Sum(nil))[:16], nil
}

type debian struct {
	run           command.Runner
	root, scratch string
	log           func(string)
}

func (d debian) install(ctx context.Context) error {
	d.log("debian: debootstrap")
	steps := []command.Cmd{{Name: "debootstrap", Args: []string{"--variant=minbase", debianSuite, d.root, debianMirror}}}
	if err := d.do(ctx, steps); err != nil {
		return fault.As(fault.Unavailable, err)
	}
	for _, name := range []string{"etc/resolv.conf", "etc/hosts"} {
		text, err := os.ReadFile("/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d.root, name), text, 0o644); err != nil {
			return err
		}
	}
	noServices := filepath.Join(d.root, "usr/sbin/policy-rc.d")
	if err := os.WriteFile(noServices, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
		return err
	}
	if err := d.files("etc/apt/sources.list"); err != nil {
		return err
	}
	d.log("debian: packages")
	quiet := []string{d.root, "apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "Dpkg::Use-Pty=0"}
	install := append(append(quiet, "install", "--yes", "--no-install-recommends"), debianPackages...)
	env := []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	err := d.do(ctx, []command.Cmd{
		{Name: "chroot", Args: append(quiet[:len(quiet):len(quiet)], "update"), Env: env},
		{Name: "chroot", Args: install, Env: env},
		{Name: "chroot", Args: []string{d.root, "apt-get", "clean"}, Env: env},
	})
	if err != nil {
		return fault.As(fault.Unavailable, err)
	}
	lists, _ := filepath.Glob(filepath.Join(d.root, "var/lib/apt/lists/*"))
	keys, _ := filepath.Glob(filepath.Join(d.root, "etc/ssh/ssh_host_*"))
	for _, path := range append(append(lists, keys...), noServices) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(debianFiles))
	for name := range debianFiles {
		names = append(names, name)
	}
	return d.files(names...)
}

func (d debian) files(names ...string) error {
	for _, name := range names {
		path := filepath.Join(d.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(debianFiles[name]), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (d debian) do(ctx context.Context, steps []command.Cmd) error {
	for _, step := range steps {
		if _, err := d.run.Run(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// image makes the disk: the boot loader's partition with Debian's own kernel and initrd, and the root.
func (d debian) image(ctx context.Context, image string) error {
	kernel, err := one(filepath.Join(d.root, "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	initrd, err := one(filepath.Join(d.root, "boot/initrd.img-*"))
	if err != nil {
		return err
	}
	d.log("debian: disk")
	err = makeBoot(ctx, d.run, d.scratch, image, bootPartition{layout: debianLayout, kernel: kernel, initrd: initrd, cluster: 4,
		cmdline: "root=LABEL=debian ro console=tty0 console=ttyS0 net.ifnames=0"})
	if err != nil {
		return err
	}
	_, err = d.run.Run(ctx, command.Cmd{Name: mke2fs, Args: []string{"-q", "-F", "-t", "ext4", "-L", "debian",
		"-E", "offset=" + strconv.FormatInt(debianLayout.rootStart, 10), "-d", d.root, image, strconv.FormatInt(debianLayout.rootSize/4096, 10)}})
	return err
}

// one is the only file that matches.
func one(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%s: %d files [%s], want 1", pattern, len(found), strings.Join(found, " "))
	}
	return found[0], nil
}
