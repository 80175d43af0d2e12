package fuse

import (
	"context"
	"math"
	"sort"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

const blockSize = 4096 // what a loop device on a file takes as the granularity of discards

func (f *FileSystem) String() string { return subtype }

func (f *FileSystem) file(node uint64) *file { return f.files.Load().byNode[node] }

// Lookup gives names no time in the kernel: the node of a name changes when its content is whole.
func (f *FileSystem) Lookup(_ <-chan struct{}, header *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	if header.NodeId != gofuse.FUSE_ROOT_ID {
		return gofuse.ENOTDIR
	}
	file := f.files.Load().byName[name]
	if file == nil {
		return gofuse.ENOENT
	}
	out.NodeId = file.node
	if file.isWhole() {
		out.NodeId = file.through
	}
	out.AttrValid = file.attrValid()
	file.attr(&out.Attr)
	return gofuse.OK
}

func (f *FileSystem) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if in.NodeId == gofuse.FUSE_ROOT_ID {
		out.Attr = gofuse.Attr{Ino: gofuse.FUSE_ROOT_ID, Mode: gofuse.S_IFDIR | 0o711, Nlink: 2}
		return gofuse.OK
	}
	file := f.file(in.NodeId)
	if file == nil {
		return estale
	}
	out.AttrValid = file.attrValid()
	file.attr(&out.Attr)
	return gofuse.OK
}

// SetAttr changes nothing: times are ignored, the size can be set to what it is.
func (f *FileSystem) SetAttr(_ <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	file := f.file(in.NodeId)
	if file == nil {
		return gofuse.EPERM
	}
	size, resized := in.GetSize()
	if in.Valid&(gofuse.FATTR_MODE|gofuse.FATTR_UID|gofuse.FATTR_GID) != 0 || resized && int64(size) != file.size {
		return gofuse.EPERM
	}
	out.AttrValid = file.attrValid()
	file.attr(&out.Attr)
	return gofuse.OK
}

func (f *FileSystem) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	file := f.file(in.NodeId)
	if file == nil {
		return estale
	}
	return file.open(in, out)
}

func (f *FileSystem) Release(<-chan struct{}, *gofuse.ReleaseIn) {}

// Flush comes with each close; that there is nothing to do is said once.
func (f *FileSystem) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.ENOSYS }

func (f *FileSystem) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.OK
}

func (f *FileSystem) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	names := f.files.Load().byName
	sorted := make([]*file, 0, len(names))
	for _, file := range names {
		sorted = append(sorted, file)
	}
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].node < sorted[j].node })
	// The offset is the node of the last entry given, so that additions and removals do not move what comes.
	for _, file := range sorted {
		if file.node > in.Offset && !out.AddDirEntry(gofuse.DirEntry{Name: file.name, Mode: gofuse.S_IFREG, Ino: file.node, Off: file.node}) {
			break
		}
	}
	return gofuse.OK
}

func (f *FileSystem) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	*out = gofuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: 255}
	return gofuse.OK
}

func (f *FileSystem) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	file := f.file(in.NodeId)
	if file == nil {
		return nil, enodev
	}
	offset := int64(min(in.Offset, math.MaxInt64))
	buf = buf[:max(0, min(int64(len(buf)), int64(in.Size), file.size-offset))]
	if len(buf) == 0 {
		return gofuse.ReadResultData(nil), gofuse.OK
	}
	status := file.use(cancel, &in.InHeader, func() (bool, error) {
		if file.quick == nil {
			return false, nil
		}
		return file.quick.TryReadAt(buf, offset)
	}, func(ctx context.Context) error {
		return file.device.ReadAt(ctx, buf, offset)
	})
	if !status.Ok() {
		return nil, status
	}
	return gofuse.ReadResultData(buf), gofuse.OK
}

func (f *FileSystem) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	file := f.file(in.NodeId)
	if file == nil {
		return 0, enodev
	}
	offset := int64(min(in.Offset, math.MaxInt64))
	data = data[:max(0, min(int64(len(data)), file.size-offset))]
	if len(data) == 0 {
		return 0, enospc // as block devices say it
	}
	fua := in.Flags&unix.O_DSYNC != 0
	status := file.use(cancel, &in.InHeader, func() (bool, error) {
		if file.quick == nil || fua {
			return false, nil
		}
		return file.quick.TryWriteAt(data, offset)
	}, func(ctx context.Context) error {
		return file.device.WriteAt(ctx, data, offset, fua)
	})
	if !status.Ok() {
		return 0, status
	}
	file.modified.Store(time.Now().UnixNano())
	return uint32(len(data)), gofuse.OK
}

func (f *FileSystem) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	file := f.file(in.NodeId)
	if file == nil {
		return enodev
	}
	if file.readOnly {
		return gofuse.OK
	}
	return file.use(cancel, &in.InHeader, nil, file.device.Flush)
}

// Fallocate makes zeros: punching a hole discards, zeroing a range keeps the space. The length never changes.
func (f *FileSystem) Fallocate(cancel <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	file := f.file(in.NodeId)
	if file == nil {
		return enodev
	}
	var flags export.ZeroFlags
	switch in.Mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		flags.Trim = true
	case unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		flags.NoHole = true
	default:
		return gofuse.Status(unix.EOPNOTSUPP)
	}
	offset := int64(min(in.Offset, math.MaxInt64))
	length := min(int64(min(in.Length, math.MaxInt64)), file.size-offset)
	if in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 && in.Length > uint64(max(length, 0)) {
		return enospc
	}
	if length <= 0 {
		return gofuse.OK
	}
	status := file.use(cancel, &in.InHeader, nil, func(ctx context.Context) error {
		return file.device.Zero(ctx, offset, length, flags)
	})
	file.modified.Store(time.Now().UnixNano())
	return status
}

// Lseek finds data and holes; a hole is what reads as zeros.
func (f *FileSystem) Lseek(cancel <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	file := f.file(in.NodeId)
	if file == nil {
		return enodev
	}
	offset := int64(min(in.Offset, math.MaxInt64))
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return gofuse.EINVAL
	}
	if offset >= file.size {
		return enxio
	}
	found := int64(-1)
	status := file.use(cancel, &in.InHeader, nil, func(ctx context.Context) error {
		err := file.device.Extents(ctx, offset, file.size-offset, func(x export.Extent) bool {
			if x.Zero == (in.Whence == unix.SEEK_HOLE) {
				found = max(x.Offset, offset)
			}
			return found < 0
		})
		if fault.Is(err, fault.Unsupported) { // a device that does not tell is all data
			found, err = -1, nil
			if in.Whence == unix.SEEK_DATA {
				found = offset
			}
		}
		return err
	})
	switch {
	case !status.Ok():
		return status
	case found < 0 && in.Whence == unix.SEEK_DATA:
		return enxio
	case found < 0:
		found = file.size
	}
	out.Offset = uint64(found)
	return gofuse.OK
}
