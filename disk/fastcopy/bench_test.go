package fastcopy_test

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"hayloft/disk/fastcopy"
	"hayloft/image"
)

// BenchmarkCopy copies a file of 512 MiB, a quarter of it zeros, to a file of the same file system, and makes it durable: as
// this package does, and as dd and cp do, on the same machine in the same run. HAYLOFT_COPY_TO is a block device to copy to
// instead, which loses its content.
func BenchmarkCopy(b *testing.B) {
	const size = 512 << 20
	dir := b.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if device := os.Getenv("HAYLOFT_COPY_TO"); device != "" {
		to = device
	}
	src, err := os.Create(from)
	if err != nil {
		b.Fatal(err)
	}
	defer src.Close()
	block := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(block)) {
		if at>>20%4 == 3 {
			continue
		}
		_, _ = rand.Read(block)
		if _, err := src.WriteAt(block, at); err != nil {
			b.Fatal(err)
		}
	}
	if err := src.Truncate(size); err != nil {
		b.Fatal(err)
	}
	index, _, err := image.Scan(b.Context(), nil, src, size, nil)
	if err != nil {
		b.Fatal(err)
	}
	if err := src.Sync(); err != nil {
		b.Fatal(err)
	}
	copies := func(s fastcopy.Spec) func() error {
		return func() error {
			s.Source, s.Size = src, size
			_, err := fastcopy.ToPath(b.Context(), to, s)
			return err
		}
	}
	program := func(name string, args ...string) func() error {
		return func() error { return exec.Command(name, args...).Run() }
	}
	for _, way := range []struct {
		name string
		run  func() error
	}{
		{"verified", copies(fastcopy.Spec{Index: index})},
		{"verified onto zeros", copies(fastcopy.Spec{Index: index, Zeros: true})},
		{"unverified", copies(fastcopy.Spec{})},
		{"dd fsync", program("dd", "if="+from, "of="+to, "bs=4M", "conv=fsync,notrunc")},
		{"dd direct", program("dd", "if="+from, "of="+to, "bs=4M", "oflag=direct", "conv=fsync,notrunc")},
		{"dd sparse", program("dd", "if="+from, "of="+to, "bs=4M", "conv=fsync,sparse,notrunc")},
		{"cp and sync", func() error {
			return errors.Join(program("cp", "--reflink=never", from, to)(), program("sync", to)())
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				if to != os.Getenv("HAYLOFT_COPY_TO") {
					if err := os.WriteFile(to, nil, 0o600); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				if err := way.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
