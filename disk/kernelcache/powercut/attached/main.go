// Command attached puts a cache before a block device, in mode BACK, in the kernel guest of the power-cut test.
//
//	attached attach|flush|detach dm-cache|bcache SOURCE LOCAL
//	attached serve SOURCE DIRECTORY MOUNTPOINT
//	attached settle SOURCE DIRECTORY
//
// attach prints the device that a machine would get. serve does the same for our own engine, whose files are in the
// directory: a file below the mount point, until it is killed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/cache/volume"
	"hayloft/disk/export/fuse"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/bcache"
	"hayloft/disk/kernelcache/dmcache"
	"hayloft/disk/kernelcache/local"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "attached:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && slices.Contains([]string{"attach", "flush", "detach"}, args[0]):
		return kernel(ctx, args[0], args[1], kernelcache.Spec{Name: args[1], Source: args[2], Local: args[3], Mode: cache.Back})
	case len(args) == 4 && args[0] == "serve":
		return serve(ctx, args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "settle":
		return settle(ctx, args[1], args[2])
	}
	return errors.New("usage: attached attach|flush|detach|serve|settle, and what that wants")
}

func kernel(ctx context.Context, what, name string, s kernelcache.Spec) error {
	var d kernelcache.Driver
	var err error
	switch name {
	case "dm-cache":
		d, err = dmcache.New(kernelcache.Config{Instance: "cut"})
	case "bcache":
		d, err = bcache.New(kernelcache.Config{Instance: "cut"})
	default:
		err = fmt.Errorf("driver %q", name)
	}
	if err != nil {
		return err
	}
	switch what {
	case "flush":
		return d.Flush(ctx, s, nil)
	case "detach":
		return d.Detach(ctx, s)
	}
	status, err := d.Attach(ctx, s)
	if err == nil {
		fmt.Println(status.Device)
		fmt.Fprintf(os.Stderr, "%d bytes cached, %d dirty\n", status.Cached, status.Dirty)
	}
	return err
}

// source is a block device as the engine's source.
type source struct {
	*os.File
	size int64
}

var _ cache.Source = source{}

func openSource(path string) (source, error) {
	size, err := local.Size(path)
	if err != nil {
		return source{}, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	return source{f, size}, err
}

func (s source) Size() int64 { return s.size }

func (s source) Truncate(size int64) error {
	if size > s.size {
		return fault.Errorf(fault.OutOfSpace, "%s has %d bytes", s.Name(), s.size)
	}
	return nil
}

func (s source) Discard(offset, length int64) error {
	zeros := make([]byte, 64<<10)
	for length > 0 {
		n, err := s.WriteAt(zeros[:min(length, int64(len(zeros)))], offset)
		if err != nil {
			return err
		}
		offset, length = offset+int64(n), length-int64(n)
	}
	return nil
}

// Undrained has no mark to write: nobody else opens this source.
func (s source) Undrained(context.Context, bool) error { return nil }

// open opens the engine's volume. Nothing that was not synced is believed after the host was down.
func open(ctx context.Context, device, dir string) (cache.Volume, error) {
	s, err := openSource(device)
	if err != nil {
		return nil, err
	}
	files, err := storage.OS(dir)
	if err != nil {
		return nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	return volume.Open(ctx, cache.VolumeConfig{Name: "power cut", Dir: files, Source: s, Size: s.size, Mode: cache.Back, Boot: strings.TrimSpace(string(boot))})
}

func serve(ctx context.Context, device, dir, mountPoint string) error {
	v, err := open(ctx, device, dir)
	if err != nil {
		return err
	}
	system, err := fuse.Mount(ctx, fuse.Config{Dir: mountPoint})
	if err != nil {
		return err
	}
	path, err := system.Add("disk", v, fuse.Options{})
	if err != nil {
		return err
	}
	fmt.Println(path)
	select {} // until the power is cut, or it is killed
}

func settle(ctx context.Context, device, dir string) error {
	v, err := open(ctx, device, dir)
	if err != nil {
		return err
	}
	if err := v.Settle(ctx, nil); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%+v\n", v.Status())
	return v.Close()
}
