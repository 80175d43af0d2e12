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
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	set, err := golden.Build(ctx, golden.Options{Dir: *dir, Log: func(line string) { fmt.Fprintln(os.Stderr, line) }})
	if err != nil {
		fmt.Fprintln(os.Stderr, "golden:", err)
		os.Exit(fault.ClassOf(err).ExitStatus())
	}
	for _, path := range []string{set.Disk, set.Kernel, set.Initrd, set.Tar, set.TarZst, set.Squashfs} {
		fmt.Println(path)
	}
}
