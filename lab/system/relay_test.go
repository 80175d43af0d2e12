package system

import (
	"io"
	"net"
	"sync"
	"testing"
)

// relays let what runs in a product's network namespace reach servers of this machine's loopback at the same addresses.
type relays struct {
	t    *testing.T
	work sync.WaitGroup

	mu    sync.Mutex
	ended bool
	open  map[io.Closer]bool
}

// newRelays is called before the product begins, so that they end after it.
func newRelays(t *testing.T) *relays {
	r := &relays{t: t, open: map[io.Closer]bool{}}
	t.Cleanup(r.end)
	return r
}

func (r *relays) end() {
	r.mu.Lock()
	r.ended = true
	for c := range r.open {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.work.Wait()
}

// keep has c closed at the end; false when that is over.
func (r *relays) keep(c io.Closer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		_ = c.Close()
		return false
	}
	r.open[c] = true
	return true
}

func (r *relays) drop(c io.Closer) {
	_ = c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
}

// to listens in the product's namespace where a server does outside.
func (r *relays) to(p *product, address string) {
	p.Helper()
	var inside net.Listener
	err := p.site.Namespace.Inside(func() (err error) {
		inside, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		p.Fatalf("relay to %s: %v", address, err)
	}
	if !r.keep(inside) {
		return
	}
	r.work.Go(func() {
		for {
			from, err := inside.Accept()
			if err != nil {
				return
			}
			r.work.Go(func() { r.relay(from, address) })
		}
	})
}

func (r *relays) relay(from net.Conn, address string) {
	if !r.keep(from) {
		return
	}
	defer r.drop(from)
	to, err := net.Dial("tcp", address)
	if err != nil || !r.keep(to) {
		return
	}
	defer r.drop(to)
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(from, to)
		_ = from.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(to, from)
	_ = to.(*net.TCPConn).CloseWrite()
	<-back
}
