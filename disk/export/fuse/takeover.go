package fuse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export/loop"
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
	if err := f.holdAgain(); err != nil { // the holder of before does as well, for a while
		f.log.Warn("fuse: no holder of our own", "dir", f.dir, "error", err)
	}
	return true, nil
}

// holdAgain replaces the holder of the dead process, which ends by itself, by one of this process.
func (f *FileSystem) holdAgain() error {
	former := f.base.Holder
	fd, err := former.connection()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := f.hold(fd); err != nil {
		return err
	}
	f.save()
	former.release()
	return nil
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
	f.base = state{Version: stateVersion, Boot: bootID(), Dir: f.dir, Bound: f.bound}
	return f.hold(fd)
}

func (f *FileSystem) hold(fd int) (err error) {
	h, leave, gone, err := hold(fd, f.unattended)
	if err == nil {
		f.base.Holder, f.leave, f.holderGone = h, leave, gone
	}
	return err
}

// endHolder ends the holder and waits until it has.
func (f *FileSystem) endHolder() {
	f.base.Holder.release()
	if f.holderGone != nil {
		<-f.holderGone
		f.leave.Close()
	}
}

// endSurvival is for Close: nobody goes on with this connection.
func (f *FileSystem) endSurvival() {
	if f.statePath == "" {
		return
	}
	os.Remove(f.statePath)
	f.endHolder()
	f.lock.Close()
}

// Abandon ends what a dead process left at the directory dir for a successor that will never come, see Config: who
// waits gets an error. It does nothing when nothing was left; fault.Busy when a process serves it.
func Abandon(ctx context.Context, dir, statePath string) error {
	lock, err := lockState(statePath)
	if err != nil {
		return fmt.Errorf("fuse %s: %w", dir, err)
	}
	defer lock.Close()
	s, err := readState(statePath, dir)
	if err == nil && s != nil {
		s.Holder.release()
		err = errors.Join(clearDead(ctx, dir), os.Remove(statePath))
		if s.Bound {
			err = errors.Join(err, detach(dir))
		}
	}
	if err != nil {
		return fmt.Errorf("fuse %s: %w", dir, err)
	}
	return nil
}

// clearDead unmounts a file system that nobody serves, and detaches the loop devices on it.
func clearDead(ctx context.Context, dir string) error {
	return errors.Join(loop.ReleaseDead(ctx, dir), detach(dir))
}
