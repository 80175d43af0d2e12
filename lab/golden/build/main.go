// Command build makes the golden images, or finds them made, and prints where they are.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"hayloft/cloud/fault"
	"hayloft/lab/golden"
)

func main() {
	dir := flag.String("dir", "", "cache directory (default $HAYLOFT_CACHE or hayloft/golden in the user's cache directory)")
	debian := flag.Bool("debian", false, "make the image debian, and nothing else: as root, by debootstrap")
	guest := flag.Bool("guest", false, "make the kernel guest, and nothing else: as root")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	paths, err := build(ctx, golden.Options{Dir: *dir, Log: func(line string) { fmt.Fprintln(os.Stderr, line) }}, *debian, *guest)
	if err != nil {
		fmt.Fprintln(os.Stderr, "golden:", err)
		os.Exit(fault.ClassOf(err).ExitStatus())
	}
	for _, path := range paths {
		fmt.Println(path)
	}
}

func build(ctx context.Context, o golden.Options, debian, guest bool) ([]string, error) {
	if guest {
		g, err := golden.BuildKernelGuest(ctx, o)
		return []string{g.Root, g.Kernel, g.Initrd, g.Packages}, err
	}
	if debian {
		path, err := golden.BuildDebian(ctx, o)
		return []string{path}, err
	}
	set, err := golden.Build(ctx, o)
	return []string{set.Disk, set.Kernel, set.Initrd, set.Tar, set.TarZst, set.Squashfs}, err
}
