package labtest

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// settling is how long the kernel may take to let go of what nobody uses any more: it ends a hang.
const settling = 2 * time.Minute

// Unmount unmounts dir. Processes that were just killed may have it for a moment more: they are waited for.
func Unmount(t testing.TB, dir string) {
	t.Helper()
	for limit := time.Now().Add(settling); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(limit) {
			t.Errorf("unmount %s: %v", dir, err)
			return
		}
	}
}
