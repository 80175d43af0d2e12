package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/blockd"
	"hayloft/disk/export/nbd"
)

// face is an export as a machine sees it. Offsets and lengths are in bytes.
type face interface {
	io.Closer
	Read(ctx context.Context, p []byte, offset int64) error
	Write(ctx context.Context, p []byte, offset int64, fua bool) error
	Flush(ctx context.Context) error
	Trim(ctx context.Context, offset, length int64) error
	WriteZeroes(ctx context.Context, offset, length int64, noHole bool) error
}

// patience is for how long anything may wait.
const patience = 2 * time.Minute

// open connects to an export, again when the process is killed meanwhile.
func open(ctx context.Context, e blockd.Export) (face, error) {
	for end := time.Now().Add(patience); ; {
		f, err := openOnce(ctx, e)
		if err == nil || ctx.Err() != nil || time.Now().After(end) || e.Kind != blockd.NBD {
			return f, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func openOnce(ctx context.Context, e blockd.Export) (face, error) {
	if e.Kind == blockd.NBD {
		return nbd.Dialer{Patience: patience, Log: slog.New(slog.DiscardHandler)}.Dial(ctx, "unix", e.Path, "")
	}
	flags := os.O_RDWR
	if e.Base != nil {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(e.Path, flags, 0)
	if err != nil {
		return nil, err
	}
	return file{f, e.Kind == blockd.Loop}, nil
}

// file is a file or a block device. What it reads may come out of the kernel's memory.
type file struct {
	*os.File
	device bool
}

func (f file) Read(_ context.Context, p []byte, offset int64) error {
	n, err := f.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	return errors.Join(err, io.ErrUnexpectedEOF)
}

func (f file) Write(ctx context.Context, p []byte, offset int64, fua bool) error {
	_, err := f.WriteAt(p, offset)
	if err == nil && fua {
		err = f.Flush(ctx)
	}
	return err
}

func (f file) Flush(context.Context) error { return f.Sync() }

func (f file) Trim(ctx context.Context, offset, length int64) error {
	return f.allocate(ctx, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
}

func (f file) WriteZeroes(ctx context.Context, offset, length int64, noHole bool) error {
	if noHole {
		return f.allocate(ctx, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	}
	return f.Trim(ctx, offset, length)
}

// allocate makes zeros. A block device does that in whole sectors only, and takes neighbours out of its memory.
func (f file) allocate(ctx context.Context, mode uint32, offset, length int64) error {
	if f.device {
		return f.Write(ctx, make([]byte, length), offset, false)
	}
	for {
		if err := unix.Fallocate(int(f.Fd()), mode, offset, length); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
