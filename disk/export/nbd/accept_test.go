package nbd

import (
	"net"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// shakyListener fails to accept for a while, as accept(2) does when the machine is short of something.
type shakyListener struct {
	net.Listener
	mu   sync.Mutex
	fail []error
}

func (l *shakyListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.fail) > 0 {
		err := l.fail[0]
		l.fail = l.fail[1:]
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	return l.Listener.Accept()
}

// An export outlives that nobody can be let in for a moment.
func TestAcceptAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(Config{Names: []string{"disk"}, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	shaky := &shakyListener{Listener: l, fail: []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EPROTO, unix.EPERM}}
	go func() { ended <- s.Serve(t.Context(), shaky, newMemory(1<<20)) }()
	dial(t, path, Dialer{}).Close()
	l.Close()
	if err := <-ended; err == nil {
		t.Error("it does not say that its listener is closed")
	}
}
