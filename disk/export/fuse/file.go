package fuse

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"hayloft/disk/export"
)

// file is one device. It is two nodes to the kernel, since a node that somebody has open through the page cache
// cannot be handed through to another file: opens that come after the content is whole get the second.
type file struct {
	fs            *FileSystem
	node, through uint64
	name          string
	device        export.Device
	quick         export.Quick // nil: the device has none
	options       Options
	size          int64
	readOnly      bool
	modified      atomic.Int64 // nanoseconds since 1970

	ctx    context.Context // of everything under way
	cancel context.CancelFunc
	mu     sync.RWMutex // held for reading while the device is used
	gone   bool

	backingMu sync.Mutex
	backing   int32 // the kernel's number for what opens of the second node go to; 0: none
	refused   bool  // by the kernel; not tried again
}

func newFile(fs *FileSystem, node uint64, name string, d export.Device, o Options) *file {
	f := &file{fs: fs, node: node, through: node + 1, name: name, device: d, options: o, size: d.Size(), readOnly: d.ReadOnly()}
	f.quick, _ = d.(export.Quick)
	if o.Modified.IsZero() {
		o.Modified = time.Now()
	}
	f.modified.Store(o.Modified.UnixNano())
	if f.options.Mode == 0 {
		f.options.Mode = 0o600
		if f.readOnly {
			f.options.Mode = 0o400
		}
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// end waits until nobody uses the device.
func (f *file) end() {
	f.cancel()
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	f.backingMu.Lock()
	defer f.backingMu.Unlock()
	if f.backing != 0 {
		f.fs.server.UnregisterBackingFd(f.backing)
	}
	f.backing, f.refused = 0, true
}

// isWhole finds out whether opens can be handed through, and prepares that the first time they can.
func (f *file) isWhole() bool {
	whole, changed := f.prepare()
	if changed {
		f.fs.save()
	}
	return whole
}

func (f *file) prepare() (whole, changed bool) {
	if f.options.Passthrough == nil || !f.readOnly {
		return false, false
	}
	f.backingMu.Lock()
	defer f.backingMu.Unlock()
	if f.backing != 0 || f.refused {
		return f.backing != 0, false
	}
	content := f.options.Passthrough()
	if content == nil {
		return false, false
	}
	defer content.Close() // the kernel has its own reference
	fi, err := content.Stat()
	if err == nil && fi.Size() != f.size {
		err = errors.New("its length is not the device's")
	}
	if err == nil {
		id, errno := f.fs.server.RegisterBackingFd(&gofuse.BackingMap{Fd: int32(content.Fd())})
		if errno == 0 {
			f.backing = id
			return true, true
		}
		err = errno
	}
	f.refused = true
	f.fs.log.Warn("fuse: no passthrough, reads stay in this process", "file", f.name, "error", err)
	return false, false
}

func (f *file) attr(a *gofuse.Attr) {
	t := f.modified.Load()
	*a = gofuse.Attr{
		Ino: f.node, Size: uint64(f.size), Blocks: uint64(f.size+511) / 512, Mode: gofuse.S_IFREG | uint32(f.options.Mode),
		Nlink: 1, Owner: gofuse.Owner{Uid: uint32(f.options.UID), Gid: uint32(f.options.GID)},
		Mtime: uint64(t / 1e9), Mtimensec: uint32(t % 1e9), Ctime: uint64(t / 1e9), Ctimensec: uint32(t % 1e9),
		Atime: uint64(t / 1e9), Atimensec: uint32(t % 1e9),
	}
}

// attrValid is for how long the kernel may believe attr, in seconds.
func (f *file) attrValid() uint64 {
	if f.readOnly {
		return 3600
	}
	return 1
}

func (f *file) open(in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if f.readOnly && in.Flags&uint32(os.O_WRONLY|os.O_RDWR|os.O_TRUNC) != 0 {
		return gofuse.EROFS
	}
	if !f.readOnly {
		out.OpenFlags = gofuse.FOPEN_DIRECT_IO | gofuse.FOPEN_PARALLEL_DIRECT_WRITES
		return gofuse.OK
	}
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE
	if in.NodeId == f.through {
		f.backingMu.Lock()
		defer f.backingMu.Unlock()
		if f.backing == 0 {
			return enodev
		}
		out.OpenFlags, out.BackingID = gofuse.FOPEN_PASSTHROUGH, f.backing
	}
	return gofuse.OK
}

// use runs quick, which says whether it did it, and otherwise do with a context that ends when the file does or
// whoever asked is killed.
func (f *file) use(cancel <-chan struct{}, header *gofuse.InHeader, quick func() (bool, error), do func(context.Context) error) gofuse.Status {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.gone {
		return enodev
	}
	if quick != nil {
		if done, err := quick(); done {
			return statusOf(err)
		}
	}
	ctx, stop := context.WithCancel(f.ctx)
	defer stop()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watchCaller(ctx, cancel, header.Pid, stop)
	}()
	err := do(ctx)
	stop()
	<-watched
	switch {
	case err != nil && f.ctx.Err() != nil:
		return enodev
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled):
		return gofuse.EINTR
	}
	status := statusOf(err)
	if status == gofuse.EIO { // all that is left of the error for who asked
		f.fs.log.Warn("fuse: request failed", "file", f.name, "error", err)
	}
	return status
}
