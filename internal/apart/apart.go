// Package apart runs what may have to wait for this very process, such as the use of files that it serves itself. A
// thread that waits so cannot be killed, and a process has its files open until its last thread is gone: without this,
// a killed process would keep the locks for which its successor waits, and the thread waits for that one.
package apart

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Do runs f in a thread that has none of the files of this process open but standard input, output and error, and ends
// with f. f must use system calls with descriptors of its own only: nothing of package os that has files open, and no
// descriptor from outside; what it leaves open is closed. When ctx ends before f does, its cause is the error, and f is
// left to its thread.
func Do[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	// A timer has the runtime open what it waits with, before the thread gets its copy.
	time.NewTimer(time.Hour).Stop()
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread never ends, and its files are those of /proc/self
			defer runtime.UnlockOSThread()
			value, err := Do(ctx, f) // in another: this one is taken
			done <- result{value, err}
			return
		}
		// Never unlocked: the thread ends with the goroutine.
		if err := leaveFiles(); err != nil {
			done <- result{err: fmt.Errorf("files of a thread: %w", err)}
			return
		}
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return *new(T), context.Cause(ctx)
	}
}

// Run is Do for what gives nothing.
func Run(ctx context.Context, f func() error) error {
	_, err := Do(ctx, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// leaveFiles gives this thread descriptors of its own, and closes them.
func leaveFiles() error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return err
	}
	const dir = "/proc/thread-self/fd"
	list, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(list)
	var names []string
	for buffer := make([]byte, 16<<10); ; {
		n, err := unix.ReadDirent(list, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(buffer[:n], -1, names)
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err == nil && fd > 2 && fd != list && !isRuntimes(dir+"/"+name) {
			unix.Close(fd)
		}
	}
	return nil
}

// isRuntimes reports whether a descriptor may be one that the runtime uses from any thread, to wait for files and
// timers. It keeps none of the files open that it waits for.
func isRuntimes(link string) bool {
	buffer := make([]byte, 64)
	n, err := unix.Readlink(link, buffer)
	to := string(buffer[:max(n, 0)])
	return err == nil && (strings.HasPrefix(to, "anon_inode:[eventpoll]") || strings.HasPrefix(to, "anon_inode:[eventfd]"))
}
