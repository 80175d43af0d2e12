package golden

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/klauspost/compress/zstd"

	"hayloft/internal/command"
)

// makeArchive writes the tree as a compressed tar file.
func makeArchive(name string, t *tree, compressor func(io.Writer) (io.WriteCloser, error)) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	compressed, err := compressor(file)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := writeTar(compressed, t); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := compressed.Close(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return file.Close()
}

func gzipTo(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestCompression) }

func zstdTo(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }

// makeSquashfs writes the tree as a squashfs image.
func makeSquashfs(ctx context.Context, run command.Runner, scratch, name string, t *tree) error {
	dir := filepath.Join(scratch, "squashfs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := t.stage(dir); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err := run.Run(ctx, command.Cmd{Name: "mksquashfs", Args: []string{dir, name, "-all-root", "-no-progress", "-quiet",
		"-no-xattrs", "-mkfs-time", strconv.FormatInt(epoch.Unix(), 10)}})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
