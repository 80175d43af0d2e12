package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/wire"
	"hayloft/wire/pki"
)

// run lets an agent of the bench work with a server until the returned function is called.
func (b *bench) run(s *fakeServer, token string) (a *Agent, stop func() error) {
	b.t.Helper()
	cfg := b.config()
	cfg.Server, cfg.Dial, cfg.Token, cfg.Version = "server:2633", s.dial, token, "test"
	a, err := New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	a.pace, a.hook, a.noSync = b.pace, b.hook, true
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- a.Run(ctx) }()
	ended := false
	stop = func() error {
		cancel()
		if ended {
			return nil
		}
		ended = true
		return <-result
	}
	b.t.Cleanup(func() { stop() })
	return a, stop
}

func TestSession(t *testing.T) {
	s, b := newFakeServer(t), newBench(t)
	s.first = &wire.Order{Full: true, Assignments: []*wire.Assignment{assignment(1, 1, goalRunning)}}
	_, stop := b.run(s, s.token(t))
	hosts := 0
	s.await(t, "the host", func(r *wire.Report) bool {
		if r.Host != nil {
			hosts++
			if r.Host.Cpu == 0 || r.Host.Memory == 0 || r.Host.DiskTotal != 100 || len(r.Host.Hypervisors) != 1 || !slices.Equal(r.Host.Bases, []string{"blake3:base"}) {
				t.Errorf("host %v", r.Host)
			}
		}
		return hosts > 0
	})
	s.orders <- &wire.Order{Assignments: []*wire.Assignment{assignment(2, 1, goalRunning)}}
	ran := map[int64]bool{}
	s.await(t, "both machines running", func(r *wire.Report) bool {
		for _, m := range r.Machines {
			ran[m.Vm] = ran[m.Vm] || m.Phase == wire.Phase_PHASE_RUNNING
		}
		return ran[1] && ran[2]
	})
	if hello := s.hellos[0]; hello.HostName != "node1" || hello.Cluster != "cluster-1" || hello.Version != "test" {
		t.Errorf("hello %v", hello)
	}
	if s.identity != (pki.Identity{Role: pki.Host, Name: "node1"}) {
		t.Errorf("identity %v", s.identity)
	}

	b.w.end(1, hypervisor.Crashed, "boom")
	s.awaitPhase(t, 1, wire.Phase_PHASE_CRASHED)

	s.mu.Lock()
	s.first = &wire.Order{Full: true, Assignments: []*wire.Assignment{assignment(1, 2, goalGone), assignment(2, 1, goalRunning)}}
	s.mu.Unlock()
	s.restart() // the agent comes back by itself and says all there is
	all, gone := false, false
	s.await(t, "all machines, and the end of one", func(r *wire.Report) bool {
		all = all || len(r.Machines) == 2
		for _, m := range r.Machines {
			gone = gone || m.Vm == 1 && m.Phase == wire.Phase_PHASE_GONE
		}
		return all && gone
	})

	if err := stop(); err != nil {
		t.Error(err)
	}
	if !alive(*b.w.domains[2]) {
		t.Error("the machine ended with the agent")
	}
	info, err := os.Stat(filepath.Join(b.cfg.StateDir, identityFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("identity: %v, %v", info.Mode(), err)
	}

	_, stop = b.run(s, "") // enrolled once, for good
	s.awaitPhase(t, 2, wire.Phase_PHASE_RUNNING)
	if err := stop(); err != nil || s.enrolled != 1 {
		t.Errorf("%v, enrolled %d times", err, s.enrolled)
	}
}

// TestWorkWithoutServer: an agent that was killed in the middle goes on before it reaches the server.
func TestWorkWithoutServer(t *testing.T) {
	s, b := newFakeServer(t), newBench(t)
	s.first = &wire.Order{Full: true, Assignments: []*wire.Assignment{assignment(1, 1, goalRunning)}}
	reached := make(chan struct{})
	var agent *Agent
	var once atomic.Bool
	began := make(chan struct{})
	b.hook = func(_ int64, point string) {
		<-began
		if point == "prepare after" && once.CompareAndSwap(false, true) {
			b.life.dead.Store(true)
			agent.records.db.Close()
			close(reached)
		}
	}
	agent, stop := b.run(s, s.token(t))
	close(began)
	<-reached
	_ = stop()
	s.stop()
	b.hook = nil
	agent, stop = b.run(s, "")
	for deadline := time.Now().Add(patience); b.w.happened(1) != "prepare start"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("done: %s", b.w.happened(1))
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestEnrollmentRefused(t *testing.T) {
	s, other := newFakeServer(t), newFakeServer(t)
	for name, row := range map[string]struct{ token, words string }{
		"none":          {"", "a token of the server is needed"},
		"of another":    {other.token(t), "not a server of this installation"},
		"of the server": {func() string { token := s.token(t); clear(s.tokens); return token }(), "unknown or was used"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			cfg := b.config()
			cfg.Server, cfg.Dial, cfg.Token = "server:2633", s.dial, row.token
			a, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			err = a.Run(context.Background())
			if !fault.Is(err, fault.Permission) {
				t.Fatalf("error %v", err)
			}
			contains(t, err.Error(), row.words)
		})
	}
}

func TestOtherInstallationRefused(t *testing.T) {
	s, other, b := newFakeServer(t), newFakeServer(t), newBench(t)
	_, stop := b.run(s, s.token(t))
	s.await(t, "the host", func(r *wire.Report) bool { return r.Host != nil })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	cfg := b.config()
	cfg.Server, cfg.Dial, cfg.Token = "server:2633", s.dial, other.token(t)
	if _, err := New(cfg); !fault.Is(err, fault.WrongState) {
		t.Errorf("a token of another installation: %v", err)
	}
	a, stop := b.run(other, "")
	time.Sleep(20 * time.Millisecond)
	if err := stop(); err != nil || other.sessions != 0 {
		t.Errorf("%v, %d sessions with another installation", err, other.sessions)
	}
	connection, err := a.connect(must(pki.AgentTLS(a.self().Authority, a.certificate)))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	for deadline := time.Now().Add(patience); ; { // an attempt to connect may take too long, and then says that
		_, err = a.session(context.Background(), connection)
		if err != nil && otherInstallation(err) {
			break
		}
		if err == nil || time.Now().After(deadline) {
			t.Fatalf("error %v", err)
		}
	}
	cfg = b.config()
	cfg.Name = "node2"
	if _, err := New(cfg); !fault.Is(err, fault.WrongState) {
		t.Errorf("the state of another host: %v", err)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func TestCertificateIsRenewed(t *testing.T) {
	s, b := newFakeServer(t), newBench(t)
	a, stop := b.run(s, s.token(t))
	s.await(t, "the host", func(r *wire.Report) bool { return r.Host != nil })
	before := a.self()
	connection := must(a.connect(must(pki.AgentTLS(before.Authority, a.certificate))))
	defer connection.Close()
	if err := a.request(context.Background(), connection, "", pki.HashOf(before.Authority)); err != nil {
		t.Fatal(err)
	}
	after := must(loadIdentity(b.cfg.StateDir))
	if after.leaf.SerialNumber.Cmp(before.leaf.SerialNumber) == 0 || after.Cluster != "cluster-1" || !after.key.Equal(before.key) {
		t.Errorf("not renewed: %v", after.leaf.Subject)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestStateDirectoryIsTaken(t *testing.T) {
	b := newBench(t)
	b.begin()
	a := must(New(b.config()))
	if err := a.Run(context.Background()); !fault.Is(err, fault.Busy) {
		t.Errorf("error %v", err)
	}
	if err := Clean(context.Background(), b.config()); !fault.Is(err, fault.Busy) {
		t.Errorf("error %v", err)
	}
}

func TestClean(t *testing.T) {
	b := newBench(t)
	b.begin()
	origins["running"](b)
	b.idle()
	b.stop()
	err := Clean(context.Background(), b.config())
	if !fault.Is(err, fault.Busy) {
		t.Fatalf("error %v", err)
	}
	contains(t, err.Error(), "machines [1] are still here")
	b.begin()
	b.order(assignment(1, 2, goalGone, hard))
	b.until(1, 2, wire.Phase_PHASE_GONE)
	b.idle()
	b.stop()
	if err := Clean(context.Background(), b.config()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.cfg.StateDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state is left: %v", err)
	}
	if err := Clean(context.Background(), b.config()); err != nil {
		t.Errorf("cleaning a clean host: %v", err)
	}
}

func TestTunnels(t *testing.T) {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	defer listener.Close()
	go func() { // echoes until the other side has said all
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(connection, connection)
			connection.Close()
		}
	}()
	port := int32(netip.MustParseAddrPort(listener.Addr().String()).Port())
	s, b := newFakeServer(t), newBench(t)
	s.first = &wire.Order{Full: true, Assignments: []*wire.Assignment{assignment(1, 1, goalRunning, func(a *wire.Assignment) {
		a.Machine.Nics[0].Ips = []string{"127.0.0.1"}
		a.Machine.Graphics = &wire.Graphics{Type: "vnc", Listen: "0.0.0.0", Port: port}
	})}}
	_, stop := b.run(s, s.token(t))
	s.awaitPhase(t, 1, wire.Phase_PHASE_RUNNING)
	open := func(order *wire.OpenTunnel) (wire.Fleet_TunnelServer, *wire.Frame) {
		t.Helper()
		s.orders <- &wire.Order{Tunnel: order}
		stream := <-s.tunnels
		first, err := stream.Recv()
		if err != nil || first.Tunnel != order.Id {
			t.Fatalf("first frame %v, %v", first, err)
		}
		return stream, first
	}
	for _, order := range []*wire.OpenTunnel{{Id: "a", Vm: 1, Kind: "tcp", Port: port}, {Id: "b", Vm: 1, Kind: "vnc"}} {
		stream, first := open(order)
		if first.Error != "" {
			t.Fatal(first.Error)
		}
		if err := stream.Send(&wire.Frame{Data: []byte("hello")}); err != nil {
			t.Fatal(err)
		}
		if frame, err := stream.Recv(); err != nil || string(frame.Data) != "hello" {
			t.Errorf("%v, %v", frame, err)
		}
		s.carried <- struct{}{}                  // this side ends
		if _, err := stream.Recv(); err == nil { // and so does the other
			t.Error("the tunnel goes on")
		}
	}
	for words, order := range map[string]*wire.OpenTunnel{
		"not on host node1":  {Id: "c", Vm: 9, Kind: "tcp", Port: 22},
		"not a port":         {Id: "d", Vm: 1, Kind: "tcp", Port: 70000},
		"has no console":     {Id: "e", Vm: 1, Kind: "console"},
		`"telnet" are unkno`: {Id: "f", Vm: 1, Kind: "telnet"},
		"connection refused": {Id: "g", Vm: 1, Kind: "tcp", Port: 1},
	} {
		_, first := open(order)
		contains(t, first.Error, words)
		s.carried <- struct{}{}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
