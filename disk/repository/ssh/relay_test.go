package ssh

import (
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/knownhosts"

	"hayloft/disk"
	"hayloft/internal/remote"
	"hayloft/lab/sshlab"
)

// relay stands between us and a server, as a network does that may stop without a word.
type relay struct {
	listener net.Listener
	to       string
	group    sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond
	left    int // bytes that it still lets through, of both directions
	passed  int
	open    map[net.Conn]bool
	ended   bool
}

const endless = 1 << 60

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, to: to, left: endless, open: map[net.Conn]bool{}}
	r.changed = sync.NewCond(&r.mu)
	r.group.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			r.group.Go(func() { r.carry(from) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		r.ended = true
		r.mu.Unlock()
		r.hangUp()
		r.group.Wait()
	})
	return r
}

// stopAfter lets so many bytes through, and then nothing.
func (r *relay) stopAfter(bytes int) { r.set(bytes) }

// goOn lets all through again, what was held back first.
func (r *relay) goOn() { r.set(endless) }

func (r *relay) set(left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left, r.passed = left, 0
	r.changed.Broadcast()
}

// stands reports whether something is held back.
func (r *relay) stands() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left == 0
}

// bytes is how many passed since the last change.
func (r *relay) bytes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed
}

// hangUp ends the connections that there are.
func (r *relay) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.open {
		c.Close()
	}
	r.changed.Broadcast()
}

func (r *relay) carry(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer to.Close()
	r.mu.Lock()
	r.open[from], r.open[to] = true, true
	r.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			r.copy(way[0], way[1])
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, c := range way {
				delete(r.open, c)
				c.Close()
			}
			r.changed.Broadcast()
		})
	}
	both.Wait()
}

func (r *relay) copy(from, to net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		for p := buffer[:n]; len(p) > 0; {
			k := r.pass(to, len(p))
			if k == 0 {
				return
			}
			if _, err := to.Write(p[:k]); err != nil {
				return
			}
			p = p[k:]
		}
	}
}

// pass waits until some of n bytes may go; 0 when the connection has ended.
func (r *relay) pass(to net.Conn, n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.left == 0 && r.open[to] && !r.ended {
		r.changed.Wait()
	}
	if !r.open[to] || r.ended {
		return 0
	}
	n = min(n, r.left)
	r.left -= n
	r.passed += n
	return n
}

// through gives a repository of s that is reached through the relay, and that gives up when that has been silent for so long.
func (r *relay) through(t *testing.T, s *sshlab.Server, dir string, silent time.Duration) *Repository {
	t.Helper()
	address := r.listener.Addr().String()
	known := t.TempDir() + "/known"
	line := knownhosts.Line([]string{knownhosts.Normalize(address)}, s.HostKey)
	if err := os.WriteFile(known, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	repository, err := Connect(disk.Repository{ID: 7, Path: dir}, remote.Config{Address: "root@" + address, KeyFile: s.KeyFile, KnownHostsFile: known,
		ConnectLimit: 5 * silent / 2, AnswerLimit: 5 * silent / 2, KeepAlive: 100 * time.Millisecond, DeadAfter: silent})
	if err != nil {
		t.Fatal(err)
	}
	repository.limits = limits{answer: 5 * silent / 2, mark: 5 * silent, commit: 10 * silent}
	t.Cleanup(func() { repository.Close() })
	return repository
}

// host is what errors name.
func (r *relay) host() string { return r.listener.Addr().String() }
