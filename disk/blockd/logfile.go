package blockd

import (
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// maxLog is how large a log may become before it is put aside, in bytes; so much there is twice at most.
const maxLog = 4 << 20

// OpenLog opens the log of a daemon's process. It also becomes the standard output and error of this process, so
// that a crash is told there.
func OpenLog(stateDir string) (*Log, error) {
	if !filepath.IsAbs(stateDir) {
		return nil, fault.Errorf(fault.Invalid, "blockd: state directory %q is not absolute", stateDir)
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, err
	}
	l := &Log{path: filepath.Join(stateDir, LogFile), most: maxLog}
	return l, l.open()
}

// Log is a file that does not grow for ever.
type Log struct {
	path string
	most int64

	mu   sync.Mutex
	file *os.File
	size int64
}

func (l *Log) open() error {
	file, err := appendTo(l.path)
	if err != nil {
		return err
	}
	fi, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}
	for _, standard := range []int{1, 2} {
		if err := unix.Dup3(int(file.Fd()), standard, 0); err != nil {
			file.Close()
			return err
		}
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.size = file, fi.Size()
	return nil
}

func appendTo(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(p)) > l.most {
		if err := os.Rename(l.path, l.path+".1"); err == nil {
			_ = l.open() // else the old file goes on under its new name
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}
