package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"hayloft/disk/cache"
	"hayloft/disk/cache/base"
	"hayloft/disk/cache/storage"
	"hayloft/disk/cache/volume"
	"hayloft/disk/export"
	"hayloft/image"
)

// openBase is a whole base, as machines meet it that began while it was partial.
func openBase(ctx context.Context, path string) (export.Device, func() error, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	index, _, err := image.Scan(ctx, nil, file, info.Size(), nil)
	if err != nil {
		return nil, nil, err
	}
	dir, err := directory(path + ".base")
	if err != nil {
		return nil, nil, err
	}
	b, err := base.Open(ctx, cache.BaseConfig{Name: "bench", Dir: dir, Index: index, Log: slog.New(slog.DiscardHandler),
		Open: func(context.Context) (io.ReaderAt, io.Closer, error) {
			f, err := os.Open(path)
			return f, f, err
		}})
	if err != nil {
		return nil, nil, err
	}
	chunks := make([]int, index.Chunks())
	for i := range chunks {
		chunks[i] = i
	}
	if err := errors.Join(b.Preload(ctx, chunks, nil, nil), b.Sync()); err != nil {
		return nil, nil, errors.Join(err, b.Close())
	}
	return b.Reader(nil), b.Close, nil
}

// openVolume is a persistent image in a mode, all of it cached.
func openVolume(mode cache.Mode) opener {
	return func(ctx context.Context, path string) (export.Device, func() error, error) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, nil, err
		}
		v, err := newVolume(ctx, path+"."+string(mode), mode, &fileSource{File: f})
		if err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
		if err := v.Load(ctx, v.Size(), nil); err != nil {
			return nil, nil, errors.Join(err, v.Close(), f.Close())
		}
		return v, func() error { return errors.Join(v.Close(), f.Close()) }, nil
	}
}

func newVolume(ctx context.Context, path string, mode cache.Mode, source cache.Source) (cache.Volume, error) {
	dir, err := directory(path)
	if err != nil {
		return nil, err
	}
	return volume.Open(ctx, cache.VolumeConfig{Name: "bench", Dir: dir, Source: source, Size: source.Size(), Mode: mode, Boot: "bench",
		Log: slog.New(slog.DiscardHandler)})
}

func directory(path string) (storage.Dir, error) {
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	return storage.OS(path)
}

// fileSource is a file as the repository of a volume.
type fileSource struct{ *os.File }

func (f *fileSource) Size() int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func (f *fileSource) Discard(offset, length int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
}

func (f *fileSource) Undrained(context.Context, bool) error { return nil }
