// Package golden makes the golden images that demos and tests deploy, from Debian packages: "tiny", a virtual
// machine, as a whole disk and as kernel and initrd, and "tiny", a container, as tar and squashfs.
// No script of a package runs and no root is needed.
package golden

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// Options say where a set of images is kept.
type Options struct {
	Dir string       // cache directory, made if missing; DefaultDir() when empty
	Log func(string) // gets a line a step when something has to be built; may be nil
}

// Set is the paths of one complete set of images. They are never written again: give machines overlays.
type Set struct {
	Dir      string
	Disk     string // whole-disk image, raw and sparse, boots with SeaBIOS on pc and q35
	Kernel   string // for OS/KERNEL, with Cmdline
	Initrd   string // for OS/INITRD, finds its root on any disk labelled "tiny" (the one of Disk)
	Tar      string // root file system of a container, gzip
	TarZst   string
	Squashfs string
	Versions map[string]string // Debian packages inside, with their versions
}

// tools are the programs that a build needs and the Debian packages they are in.
var tools = []struct{ program, debian string }{
	{"apt-get", "apt"}, {"apt-cache", "apt"}, {"dpkg-deb", "dpkg"}, {"mformat", "mtools"}, {"mcopy", "mtools"},
	{"syslinux", "syslinux"}, {mke2fs, "e2fsprogs"}, {debugfs, "e2fsprogs"}, {"mksquashfs", "squashfs-tools"},
}

// Packages are the Debian packages that must be installed on a machine that builds the images.
func Packages() []string { return []string{"e2fsprogs", "mtools", "squashfs-tools", "syslinux"} }

// DefaultDir is $HAYLOFT_CACHE, or hayloft/golden in the user's cache directory.
func DefaultDir() (string, error) {
	if dir := os.Getenv("HAYLOFT_CACHE"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache directory: %w", err)
	}
	return filepath.Join(cache, "hayloft", "golden"), nil
}

// Build returns the images made from the packages that apt has now, and makes them if the cache has not got
// them. Several processes may call it at once for one directory: one builds, the others wait for it.
// Errors: Unsupported when a program is missing, Unavailable when apt cannot deliver a package.
func Build(ctx context.Context, o Options) (Set, error) {
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if o.Dir == "" {
		dir, err := DefaultDir()
		if err != nil {
			return Set{}, err
		}
		o.Dir = dir
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return Set{}, err
	}
	o.Dir = dir
	if err := checkTools(); err != nil {
		return Set{}, err
	}
	p, err := resolve(ctx, command.Exec{})
	if err != nil {
		return Set{}, err
	}
	return cached(ctx, o, p, func(ctx context.Context, scratch, dir string) error {
		return makeSet(ctx, o, p, scratch, dir)
	})
}

func checkTools() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fault.Errorf(fault.Unsupported, "golden images are made on linux/amd64, not on %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool.program); err != nil {
			return fault.Errorf(fault.Unsupported, "program %s is not installed: apt-get install %s", tool.program, tool.debian)
		}
	}
	if _, err := os.Stat(mbrFile); err != nil {
		return fault.Errorf(fault.Unsupported, "%s is missing: apt-get install syslinux", mbrFile)
	}
	return nil
}

// makeSet builds all images into dir.
func makeSet(ctx context.Context, o Options, p packages, scratch, dir string) error {
	s := source{dir: filepath.Join(scratch, "packages"), packages: p}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return err
	}
	o.Log("downloading " + p.Kernel + ", busybox and dropbear")
	if err := p.unpack(ctx, s.dir); err != nil {
		return err
	}
	set := setIn(dir, p)
	o.Log("making the virtual machine")
	if err := s.makeMachine(ctx, scratch, set); err != nil {
		return fmt.Errorf("virtual machine tiny: %w", err)
	}
	o.Log("making the container")
	if err := s.makeContainer(ctx, scratch, set); err != nil {
		return fmt.Errorf("container tiny: %w", err)
	}
	return nil
}

func (s source) makeMachine(ctx context.Context, scratch string, set Set) error {
	kernels, err := filepath.Glob(filepath.Join(s.dir, s.packages.Kernel, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return fmt.Errorf("package %s: %d kernels, want 1", s.packages.Kernel, len(kernels))
	}
	kernel, err := os.ReadFile(kernels[0])
	if err != nil {
		return err
	}
	if err := os.WriteFile(set.Kernel, kernel, 0o644); err != nil {
		return err
	}
	initrd, err := s.initrdTree(ctx)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	if err := makeInitrd(set.Initrd, initrd); err != nil {
		return err
	}
	init, err := script("common.sh", "vm.sh")
	if err != nil {
		return err
	}
	root, err := s.userlandTree(ctx, init)
	if err != nil {
		return err
	}
	button, err := script("power_button.sh")
	if err != nil {
		return err
	}
	if err := root.file("etc/acpi/PWRF/00000080", 0o755, button); err != nil {
		return err
	}
	if err := root.dir("run/context", 0o755); err != nil {
		return err
	}
	return makeDisk(ctx, s.packages.run, scratch, set.Disk, set.Kernel, set.Initrd, root)
}

// makeInitrd compresses with zstd: next to the others it costs the guest the same CPU time or less, and saves
// memory and reading.
func makeInitrd(name string, t *tree) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	compressed, err := zstd.NewWriter(file, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	if err := writeCPIO(compressed, t); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := compressed.Close(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return file.Close()
}

func (s source) makeContainer(ctx context.Context, scratch string, set Set) error {
	init, err := script("common.sh", "container.sh")
	if err != nil {
		return err
	}
	root, err := s.userlandTree(ctx, init)
	if err != nil {
		return err
	}
	if err := root.dir("context", 0o755); err != nil {
		return err
	}
	if err := makeArchive(set.Tar, root, gzipTo); err != nil {
		return err
	}
	if err := makeArchive(set.TarZst, root, zstdTo); err != nil {
		return err
	}
	return makeSquashfs(ctx, s.packages.run, scratch, set.Squashfs, root)
}
