package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/apart"
	"hayloft/internal/undo"
)

const (
	subtype    = "hayloft"
	typeName   = "fuse." + subtype
	maxRequest = 512 << 10 // bytes of one read or write
	readAhead  = 1024      // KiB that the kernel reads ahead at most
	background = 64        // reads ahead and direct requests at a time; those that somebody waits for do not count
	statLimit  = 30 * time.Second
)

func (f *FileSystem) mount(ctx context.Context) (err error) {
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Run()) }()

	if err := ctx.Err(); err != nil {
		return err
	}
	if f.statePath != "" {
		if f.lock, err = lockState(f.statePath); err != nil {
			return err
		}
		steps.Push(f.lock.Close)
		if taken, err := f.takeOver(); err != nil || taken {
			if err == nil {
				steps.Keep()
			}
			return err
		}
	}
	if err := clearStale(ctx, f.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o711); err != nil {
		return err
	}
	if f.bound, err = keepHere(f.dir); err != nil {
		return err
	}
	if f.bound {
		steps.Push(func() error { return detach(f.dir) })
	}
	fd, err := attach(f.dir)
	if err != nil {
		return err
	}
	serving := false
	steps.Push(func() error {
		err := detach(f.dir)
		if serving {
			<-f.served
		}
		return err
	})

	// go-fuse takes the descriptor over. It cannot mount by itself: children of this process would inherit the
	// connection and keep a dead mount from being noticed.
	f.server, err = gofuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", fd), f.mountOptions())
	if err != nil {
		return err
	}
	serving = true
	f.serve()
	if f.statePath != "" {
		if err := f.prepareSurvival(fd); err != nil {
			return err
		}
		steps.Push(func() error { f.endHolder(); return nil })
		f.base.Init = initMessage(f.server.KernelSettings())
		f.save()
	}
	if err := apart.Run(ctx, func() error { return refusePoll(f.dir) }); err != nil {
		return err
	}
	if err := raiseReadAhead(ctx, f.dir); err != nil {
		f.log.Debug("fuse: the kernel's read-ahead stays as it is", "dir", f.dir, "error", err)
	}
	steps.Keep()
	return nil
}

// attach opens a connection and mounts it. No event of it reaches other namespaces: see keepHere.
func attach(dir string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fault.Errorf(fault.Unsupported, "/dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions,max_read=%d",
		fd, os.Geteuid(), os.Getegid(), maxRequest)
	if err := unix.Mount(subtype, dir, typeName, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		unix.Close(fd)
		class := fault.ClassOf(err)
		if errors.Is(err, unix.ENODEV) {
			class = fault.Unsupported
		}
		return -1, fault.Errorf(class, "mount: %w", err)
	}
	return fd, nil
}

// detach unmounts what is mounted last at dir, at once: requests under way are ended, open files fail from now on.
func detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) { // somebody else did it
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}

// refusePoll makes the kernel ask whether files can be polled, which go-fuse denies for all. Otherwise it would ask
// when this process opens one of them, and the Go runtime could then have no thread left to answer.
func refusePoll(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("first request: %w", err)
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if errors.Is(err, unix.EINTR) {
		err = nil
	}
	return err
}

func raiseReadAhead(ctx context.Context, dir string) error {
	st, err := apart.Do(ctx, func() (st unix.Stat_t, err error) {
		err = unix.Stat(dir, &st)
		return st, err
	})
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	return os.WriteFile(path, fmt.Appendf(nil, "%d", readAhead), 0)
}

// clearStale unmounts file systems of ours at dir whose process is dead, and refuses everything else.
func clearStale(ctx context.Context, dir string) error {
	for {
		mounts, err := mountsAt(dir)
		if err != nil {
			return err
		}
		if len(mounts) == 0 {
			return nil
		}
		top := mounts[len(mounts)-1]
		if top.fsType != typeName {
			if top.private && top.root != "/" { // left of keepHere, or somebody's bind mount: either will do
				return nil
			}
			return fault.Errorf(fault.WrongState, "is a mount point of %s (%s)", top.fsType, top.source)
		}
		if alive, err := answers(ctx, dir); err != nil || alive {
			return errors.Join(err, fault.Errorf(fault.Busy, "is served by another process"))
		}
		if err := clearDead(ctx, dir); err != nil {
			return err
		}
	}
}

// answers tells whether a file system has a process behind it.
func answers(ctx context.Context, dir string) (bool, error) {
	limit, cancel := context.WithTimeout(ctx, statLimit)
	defer cancel()
	err := apart.Run(limit, func() error {
		var st unix.Statfs_t
		return unix.Statfs(dir, &st)
	})
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED), nil
}

// keepHere makes sure that what is mounted at dir does not appear in other mount namespaces: where dir is part of a
// shared mount, it is bound to itself and made private first. It says whether it did.
func keepHere(dir string) (bool, error) {
	shared, err := isShared(dir)
	if err != nil || !shared {
		return false, err
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return false, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return false, errors.Join(fmt.Errorf("make private: %w", err), detach(dir))
	}
	return true, nil
}
