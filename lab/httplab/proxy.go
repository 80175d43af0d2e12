package httplab

import (
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy is a forward proxy: tunnels by CONNECT, and plain requests. It runs until Close.
type Proxy struct {
	*Server
	tunnels, forwards atomic.Int64
	refuse            atomic.Int64 // status
	login             string
	copying           sync.WaitGroup
	mu                sync.Mutex
	open              map[net.Conn]bool
	ended             bool // no further tunnels
}

// StartProxy listens on loopback. user and password are asked for when user is not empty; c says certificate and rate.
func StartProxy(c Config, user, password string) (*Proxy, error) {
	p := &Proxy{open: map[net.Conn]bool{}}
	if user != "" {
		p.login = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	c.Handler = http.HandlerFunc(p.serve)
	var err error
	p.Server, err = Start(c)
	return p, err
}

// Tunnels is how many connections were let through, Forwards how many plain requests.
func (p *Proxy) Tunnels() int64  { return p.tunnels.Load() }
func (p *Proxy) Forwards() int64 { return p.forwards.Load() }

// Refuse answers everything with a status from now on; 0 ends that.
func (p *Proxy) Refuse(status int) { p.refuse.Store(int64(status)) }

// Cut ends all tunnels.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

// Close ends it and all tunnels.
func (p *Proxy) Close() error {
	err := p.Server.Close()
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.Cut()
	p.copying.Wait()
	return err
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	switch status := int(p.refuse.Load()); {
	case status != 0:
		http.Error(w, http.StatusText(status), status)
	case p.login != "" && r.Header.Get("Proxy-Authorization") != p.login:
		w.Header().Set("Proxy-Authenticate", "Basic")
		http.Error(w, "who are you", http.StatusProxyAuthRequired)
	case r.Method == http.MethodConnect:
		p.tunnel(w, r)
	default:
		p.forward(w, r)
	}
}

func (p *Proxy) forward(w http.ResponseWriter, r *http.Request) {
	p.forwards.Add(1)
	r = r.Clone(r.Context())
	r.RequestURI = ""
	r.Header.Del("Proxy-Authorization")
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	answer, err := transport.RoundTrip(r)
	if err != nil {
		http.Error(w, "cannot be reached", http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	for name, values := range answer.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.StatusCode)
	io.Copy(w, answer.Body)
}

func (p *Proxy) tunnel(w http.ResponseWriter, r *http.Request) {
	there, err := net.DialTimeout("tcp", r.Host, time.Minute)
	if err != nil {
		http.Error(w, "cannot be reached", http.StatusBadGateway)
		return
	}
	w.WriteHeader(http.StatusOK)
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		there.Close()
		return
	}
	p.tunnels.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		here.Close()
		there.Close()
		return
	}
	p.open[here], p.open[there] = true, true
	p.copying.Go(func() { // the server forgets connections that were taken from it
		var both sync.WaitGroup
		both.Go(func() { io.Copy(there, buffered); there.Close() })
		both.Go(func() { io.Copy(here, there); here.Close() })
		both.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, here)
		delete(p.open, there)
	})
}
