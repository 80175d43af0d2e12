package labtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Halt stops a process. It returns when all its threads have stopped: until then some may go on for a while, and answer.
func Halt(pid int) error {
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	for limit := time.Now().Add(settling); !halted(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			return fmt.Errorf("process %d does not stop", pid)
		}
	}
	return nil
}

// halted says whether no thread of a process runs.
func halted(pid int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // no error: the pattern is good
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		// tid (name, which may have brackets and blanks) state ...
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if len(fields) == 0 || !bytes.Contains([]byte("TtZX"), fields[0]) {
			return false
		}
	}
	return true
}
