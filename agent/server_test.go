package agent

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"hayloft/wire"
	"hayloft/wire/pki"
)

// fakeServer is a server as far as agents can tell.
type fakeServer struct {
	wire.UnimplementedFleetServer
	authority *pki.Authority
	cluster   string
	mu        sync.Mutex
	tokens    map[string]string // id -> hash
	enrolled  int
	sessions  int
	hellos    []*wire.Hello
	reports   chan *wire.Report
	orders    chan *wire.Order
	tunnels   chan wire.Fleet_TunnelServer
	carried   chan struct{} // lets the one tunnel that there is end
	first     *wire.Order
	identity  pki.Identity

	listener *bufconn.Listener
	grpc     *grpc.Server
	served   sync.WaitGroup
}

func newFakeServer(t *testing.T) *fakeServer {
	t.Helper()
	authority, err := pki.LoadOrCreateAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &fakeServer{authority: authority, cluster: "cluster-1", tokens: map[string]string{},
		reports: make(chan *wire.Report, 1000), orders: make(chan *wire.Order), tunnels: make(chan wire.Fleet_TunnelServer), carried: make(chan struct{}),
		first: &wire.Order{Full: true}}
	s.listen()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *fakeServer) listen() {
	s.listener = bufconn.Listen(1 << 20)
	s.grpc = grpc.NewServer(pki.ServerOptions(pki.ServerTLS(s.authority, "localhost"), pki.FleetRules())...)
	wire.RegisterFleetServer(s.grpc, s)
	listener, server := s.listener, s.grpc
	s.served.Go(func() { _ = server.Serve(listener) })
}

func (s *fakeServer) stop() {
	s.mu.Lock()
	server := s.grpc
	s.mu.Unlock()
	server.Stop()
	s.served.Wait()
}

func (s *fakeServer) restart() {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listen()
}

func (s *fakeServer) dial(ctx context.Context, _ string) (net.Conn, error) {
	s.mu.Lock()
	listener := s.listener
	s.mu.Unlock()
	return listener.DialContext(ctx)
}

func (s *fakeServer) token(t *testing.T) string {
	t.Helper()
	token, id, hash, err := pki.NewToken(s.authority)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[id] = hash
	return token
}

func (s *fakeServer) Enroll(ctx context.Context, r *wire.EnrollRequest) (*wire.EnrollReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	who, known := pki.FromContext(ctx)
	if !known {
		token, err := pki.ParseToken(r.Token)
		if err != nil || !token.Check(s.tokens[token.ID]) {
			return nil, status.Error(codes.Unauthenticated, "the token is unknown or was used")
		}
		delete(s.tokens, token.ID)
		who = pki.Identity{Role: pki.Host, Name: r.HostName}
	}
	certificate, err := s.authority.Sign(r.CertificateRequest, who)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.enrolled++
	return &wire.EnrollReply{Certificate: certificate, Authority: s.authority.Certificate(), Cluster: s.cluster}, nil
}

func (s *fakeServer) Session(stream wire.Fleet_SessionServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.sessions++
	s.hellos = append(s.hellos, first.Hello)
	s.identity, _ = pki.FromContext(stream.Context())
	order := s.first
	s.mu.Unlock()
	if err := stream.Send(order); err != nil {
		return err
	}
	var receiving sync.WaitGroup
	defer receiving.Wait()
	ended := make(chan struct{})
	receiving.Go(func() {
		defer close(ended)
		for {
			report, err := stream.Recv()
			if err != nil {
				return
			}
			s.reports <- report
		}
	})
	for {
		select {
		case order := <-s.orders:
			if err := stream.Send(order); err != nil {
				return err
			}
		case <-ended:
			return nil
		}
	}
}

func (s *fakeServer) Tunnel(stream wire.Fleet_TunnelServer) error {
	select {
	case s.tunnels <- stream:
	case <-stream.Context().Done():
		return nil
	}
	select {
	case <-s.carried:
	case <-stream.Context().Done():
	}
	return nil
}

// await takes reports until one satisfies found.
func (s *fakeServer) await(t *testing.T, what string, found func(*wire.Report) bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case report := <-s.reports:
			if found(report) {
				return
			}
		case <-deadline:
			t.Fatalf("no report of %s", what)
		}
	}
}

func (s *fakeServer) awaitPhase(t *testing.T, vm int64, phase wire.Phase) {
	t.Helper()
	s.await(t, phase.String(), func(r *wire.Report) bool {
		for _, m := range r.Machines {
			if m.Vm == vm && m.Phase == phase {
				return true
			}
		}
		return false
	})
}
