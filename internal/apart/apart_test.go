package apart

import (
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
	err = Do(func() error {
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

// TestRuntime goes on in such threads: timers, the collection of garbage, and waiting for others.
func TestRuntime(t *testing.T) {
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if err := Do(func() error {
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
