package apart

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDo: the files of the process stay open, f has none of them, and what f leaves open is gone.
func TestDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	number := int(file.Fd())
	want := errors.New("of f")
	err = Run(t.Context(), func() error {
		if _, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("descriptor of the process: %v", err)
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return errors.Join(want, unix.Flock(fd, unix.LOCK_EX))
	})
	if !errors.Is(err, want) {
		t.Error(err)
	}
	if _, err := file.WriteString("still open"); err != nil {
		t.Error(err)
	}
	if err := unix.Flock(number, unix.LOCK_EX); err != nil { // waits until the thread is gone
		t.Error(err)
	}
}

// TestEnd: who waits can leave.
func TestEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	leave := make(chan struct{})
	done := make(chan struct{})
	n, err := Do(ctx, func() (int, error) {
		defer close(done)
		cancel()
		<-leave
		return 1, nil
	})
	if n != 0 || !errors.Is(err, context.Canceled) {
		t.Error(n, err)
	}
	close(leave)
	<-done
}

// TestRuntime goes on in such threads: timers, the collection of garbage, and waiting for others.
func TestRuntime(t *testing.T) {
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if err := Run(t.Context(), func() error {
				for range 20 {
					time.Sleep(time.Millisecond)
					runtime.GC()
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}
