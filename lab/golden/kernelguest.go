package golden

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// KernelGuest is a Debian for tests that need what the machine's own kernel lacks: package lab/guest boots it.
type KernelGuest struct {
	Root     string // ext4, raw and sparse, never written again: boot it with a snapshot
	Kernel   string
	Initrd   string // mounts Root, which is /dev/vda, and the disk called programs=DEVICE, and starts /programs/init
	Packages string // one line a Debian package with its version
}

// BuildKernelGuest returns the guest made from the packages that apt has now, and makes it as root if the cache has
// not got it. Several processes may call it at once, as Build. Scripts of packages do not run: their files are
// laid out, and what the scripts would have configured is written. Errors: Unsupported, Unavailable, Permission.
func BuildKernelGuest(ctx context.Context, o Options) (KernelGuest, error) {
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if o.Dir == "" {
		dir, err := DefaultDir()
		if err != nil {
			return KernelGuest{}, err
		}
		o.Dir = dir
	}
	if err := checkTools(); err != nil {
		return KernelGuest{}, err
	}
	b := kernelGuest{run: command.Exec{}, log: o.Log}
	debs, err := b.resolved(ctx, o.Dir)
	if err != nil {
		return KernelGuest{}, err
	}
	dir, err := kept(ctx, o.Dir, kernelGuestKey(debs), func(ctx context.Context, scratch, dir string) error {
		if os.Geteuid() != 0 {
			return fault.Errorf(fault.Permission, "the kernel guest is made by root")
		}
		b.scratch, b.debs = scratch, debs
		if err := b.build(ctx, kernelGuestIn(dir)); err != nil {
			return fmt.Errorf("kernel guest: %w", err)
		}
		return nil
	})
	return kernelGuestIn(dir), err
}

func kernelGuestIn(dir string) KernelGuest {
	return KernelGuest{Root: filepath.Join(dir, "root.img"), Kernel: filepath.Join(dir, "vmlinuz"),
		Initrd: filepath.Join(dir, "initrd"), Packages: filepath.Join(dir, "packages")}
}

// kernelGuestVersion changes the key when the Go code changes what is in the guest.
const kernelGuestVersion = "1"

//go:embed kernelguest/initrd.sh
var kernelGuestInitrd []byte

func kernelGuestKey(debs []string) string {
	h := sha256.New()
	fmt.Fprintln(h, kernelGuestVersion, debs, kernelGuestModules, kernelGuestLeftOut, kernelGuestFiles, kernelGuestDirs, kernelGuestLinks)
	h.Write(kernelGuestInitrd)
	return "guest-" + hex.EncodeToString(h.Sum(nil))[:16]
}

// kernelGuest is a build that runs.
type kernelGuest struct {
	run     command.Runner
	log     func(string)
	scratch string
	debs    []string // file names, sorted
}

// leftOut tells that nothing of a package is needed by those whose programs tests run.
func leftOut(deb string) bool {
	for _, prefix := range kernelGuestLeftOut {
		if strings.HasPrefix(deb, prefix) {
			return true
		}
	}
	return false
}

// packageName is what comes before the version in the name of a package's file.
func packageName(deb string) string {
	name, _, _ := strings.Cut(deb, "_")
	return name
}
