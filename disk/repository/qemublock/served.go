package qemublock

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/disk/export/nbd"
	"hayloft/disk/repository"
)

// Served is a Source of another repository, whose bytes this process serves to the child: for a Format on what QEMU
// has no driver for, or is not to open itself. The Source is the caller's to close, after the Disk.
type Served struct{ Source repository.Source }

type nbdOptions struct {
	common
	Server unixAddress `json:"server"`
}

type unixAddress struct {
	Type string `json:"type"`
	Path string `json:"path"`
}

func (n Served) check() error {
	if n.Source == nil {
		return fault.Errorf(fault.Invalid, "no source to serve")
	}
	return nil
}

func (n Served) options(s *supplies, c common) any {
	return nbdOptions{common: c.of("nbd"), Server: unixAddress{Type: "unix", Path: s.serve(n.Source)}}
}

// bytesOf is a Source as an export.
type bytesOf struct {
	repository.Source
	buffers *sync.Pool // of *[]byte
}

func (b bytesOf) ReadOnly() bool { return true }

// ReadAt reads into a buffer of its own: one that was given to a Source that is not available may not be used again.
func (b bytesOf) ReadAt(_ context.Context, p []byte, offset int64) error {
	buffer, _ := b.buffers.Get().(*[]byte)
	if buffer == nil || len(*buffer) < len(p) {
		fresh := make([]byte, len(p))
		buffer = &fresh
	}
	n, err := b.Source.ReadAt((*buffer)[:len(p)], offset)
	if !fault.Is(err, fault.Unavailable) {
		copy(p, (*buffer)[:n])
		b.buffers.Put(buffer)
	}
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fault.Errorf(fault.Unavailable, "%d bytes of %d at %d", n, len(p), offset)
	}
	return err
}

func refuse() error { return fault.Errorf(fault.Permission, "read-only") }

func (b bytesOf) WriteAt(context.Context, []byte, int64, bool) error { return refuse() }
func (b bytesOf) Flush(context.Context) error                        { return nil }
func (b bytesOf) Zero(context.Context, int64, int64, export.ZeroFlags) error {
	return refuse()
}
func (b bytesOf) Prefetch(context.Context, int64, int64) error { return nil }
func (b bytesOf) Extents(_ context.Context, offset, length int64, yield func(export.Extent) bool) error {
	if length > 0 {
		yield(export.Extent{Offset: offset, Length: length})
	}
	return nil
}

// listen begins to serve on a socket that the child can connect to; the server ends with ctx.
func listen(ctx context.Context, path string, uid int, source repository.Source) (ended <-chan struct{}, err error) {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if uid >= 0 {
		err = os.Chown(path, uid, uid)
	}
	if err = errors.Join(err, os.Chmod(path, 0o600)); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	server, err := nbd.NewServer(nbd.Config{Connections: 1})
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ctx, listener, bytesOf{source, &sync.Pool{}})
	}()
	return done, nil
}
