package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// notifyResend is a message of the protocol (linux/fuse.h) that go-fuse does not make for us.
const notifyResend = 7

func (f *FileSystem) mountOptions() *gofuse.MountOptions {
	return &gofuse.MountOptions{
		MaxBackground:      background,
		MaxWrite:           maxRequest,
		DisableXAttrs:      true,
		DisableReadDirPlus: true,
		DisableSplice:      true, // it would be tried for results that have no descriptor
		ExtraCapabilities:  gofuse.CAP_ASYNC_DIO | gofuse.CAP_DIRECT_IO_ALLOW_MMAP,
		Logger:             slog.NewLogLogger(f.log.Handler(), slog.LevelWarn),
	}
}

// takeOver goes on with the connection of a process that died, when there is one; false when not.
func (f *FileSystem) takeOver() (bool, error) {
	s, err := readState(f.statePath, f.dir)
	if err != nil || s == nil {
		return false, err
	}
	mounts, err := mountsAt(f.dir)
	if err != nil {
		return false, err
	}
	fd, err := s.Holder.connection()
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if s.Version != stateVersion || !isInit(s.Init) || len(mounts) == 0 || mounts[len(mounts)-1].fsType != typeName {
		unix.Close(fd)
		s.Holder.release() // then its mount is a dead one, to be cleared away
		return false, nil
	}
	if f.server, err = resumedServer(f, fd, s.Init); err != nil {
		return false, err
	}
	f.base, f.bound, f.lastID, f.earlier = *s, s.Bound, s.LastID, s.Files
	f.taken = true
	return true, nil
}

// resumedServer makes a server for a connection whose first message was answered long ago. go-fuse wants that message,
// so it gets it again, from a socket; then the connection takes the socket's place, before anything else is read.
// fd is taken over.
func resumedServer(f *FileSystem, fd int, first []byte) (*gofuse.Server, error) {
	defer unix.Close(fd)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[1])
	if _, err := unix.Write(pair[1], first); err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	server, err := gofuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", pair[0]), f.mountOptions())
	if err != nil {
		return nil, err // go-fuse has closed it
	}
	if err := unix.Dup3(fd, pair[0], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	return server, nil
}

// resend has the kernel send again what the dead process had read and not answered.
func resend(fd int) error {
	message := make([]byte, 16) // struct fuse_out_header, with the code in the place of the error
	binary.NativeEndian.PutUint32(message[0:], 16)
	binary.NativeEndian.PutUint32(message[4:], notifyResend)
	_, err := unix.Write(fd, message)
	return err
}

// Resume begins to answer after a process that died: to be called when all files of that process have been added
// again, with the same devices; those that were not are gone then. Meanwhile the kernel has all requests wait. It does
// nothing where there was nothing to take over. fault.Unsupported when the kernel cannot send again what the dead
// process had not answered (before Linux 6.9): such requests never end.
func (f *FileSystem) Resume() error {
	f.mu.Lock()
	waiting := f.taken && !f.closed
	f.taken, f.earlier = false, nil
	f.mu.Unlock()
	if !waiting {
		return nil
	}
	f.save()
	fd, err := f.base.Holder.connection()
	if err == nil {
		err = resend(fd)
		unix.Close(fd)
	}
	f.serve()
	f.log.Info("fuse taken over", "dir", f.dir)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = fault.As(fault.Unsupported, err)
	}
	if err != nil {
		return fault.Errorf(fault.ClassOf(err), "fuse %s: requests that were under way: %w", f.dir, err)
	}
	return nil
}

func (f *FileSystem) serve() {
	go func() {
		defer close(f.served)
		f.server.Serve()
	}()
}

// prepareSurvival has the connection outlive this process.
func (f *FileSystem) prepareSurvival(fd int) error {
	h, gone, err := hold(fd)
	if err != nil {
		return err
	}
	f.holderGone = gone
	f.base = state{Version: stateVersion, Boot: bootID(), Dir: f.dir, Bound: f.bound, Holder: h}
	return nil
}

// endSurvival is for Close: nobody goes on with this connection.
func (f *FileSystem) endSurvival() {
	if f.statePath == "" {
		return
	}
	os.Remove(f.statePath)
	f.base.Holder.release()
	if f.holderGone != nil {
		<-f.holderGone
	}
	f.lock.Close()
}
