package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"hayloft/internal/command"
)

// makePrograms makes the disk with the guest's init and the programs of the tests. A small file system is both quick to
// make and cheap to read for an emulated processor: no decompression.
func makePrograms(ctx context.Context, dir, image string, files map[string]string) error {
	staging, err := os.MkdirTemp(dir, "programs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(staging)
	run := command.Exec{}
	_, err = run.Run(ctx, command.Cmd{Name: "go", Args: []string{"build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(staging, "init"), "hayloft/lab/guest/init"},
		Env: []string{"CGO_ENABLED=0"}})
	if err != nil {
		return err
	}
	size := int64(16 << 20)
	for name, file := range files {
		n, err := stage(filepath.Join(staging, filepath.FromSlash(name)), file)
		if err != nil {
			return err
		}
		size += n + n/20 + 8<<10
	}
	if err := os.RemoveAll(image); err != nil {
		return err
	}
	_, err = run.Run(ctx, command.Cmd{Name: "/sbin/mke2fs", Args: []string{"-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096",
		"-O", "^has_journal,^metadata_csum,^resize_inode", "-E", "root_owner=0:0,lazy_itable_init=1", "-d", staging, image, fmt.Sprintf("%dk", size>>10)}})
	return err
}

// stage brings a file in place and returns its size in bytes.
func stage(target, file string) (int64, error) {
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", file)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return 0, err
	}
	if os.Link(file, target) == nil {
		return info.Size(), nil
	}
	from, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	to, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(to, from)
	return info.Size(), errors.Join(err, to.Close())
}

// cutLoopback returns the port of an address of the loopback.
func cutLoopback(address string) (port string, ok bool) {
	return strings.CutPrefix(address, "127.0.0.1:")
}
