package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"hayloft/cloud/fault"
	"hayloft/internal/leaktest"
	"hayloft/wire"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := LoadOrCreateAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthorityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	first, err := LoadOrCreateAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, authorityFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	second, err := LoadOrCreateAuthority(dir)
	if err != nil || second.Hash() != first.Hash() || !second.key.Equal(first.key) {
		t.Errorf("another authority: %v", err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("files: %v", files)
	}
	for _, damage := range []string{"", "not PEM", strings.Repeat("x", 100)} {
		if err := os.WriteFile(filepath.Join(dir, authorityFile), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadOrCreateAuthority(dir); !fault.Is(err, fault.Corrupt) {
			t.Errorf("damaged to %q: %v", damage, err)
		}
	}
}

func TestAuthorityMadeByManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	hashes := make([]string, 8)
	var all sync.WaitGroup
	for i := range hashes {
		all.Go(func() {
			if a, err := LoadOrCreateAuthority(dir); err == nil {
				hashes[i] = a.Hash()
			}
		})
	}
	all.Wait()
	for _, hash := range hashes {
		if hash == "" || hash != hashes[0] {
			t.Fatalf("authorities differ: %v", hashes)
		}
	}
}

func TestMixedAuthorityIsRefused(t *testing.T) {
	one, _ := authority(t).PEM()
	two, _ := authority(t).PEM()
	certificate, _, _ := strings.Cut(string(one), "-----BEGIN EC")
	_, key, _ := strings.Cut(string(two), "-----BEGIN EC")
	if _, err := ParseAuthority([]byte(certificate + "-----BEGIN EC" + key)); !fault.Is(err, fault.Corrupt) {
		t.Errorf("error %v", err)
	}
}

func TestIdentity(t *testing.T) {
	for text, good := range map[string]bool{
		"host:node-1.example_x": true, "admin:root": true, "host:": false, "host": false, "": false, "user:x": false,
		"host:a/b": false, "host:a b": false, "host:a\nb": false, "host:a:b": false, "host:" + strings.Repeat("x", 254): false,
	} {
		id, err := ParseIdentity(text)
		if good != (err == nil) || good && id.String() != text {
			t.Errorf("%q: %v, %v", text, id, err)
		}
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: class of %v", text, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	a := authority(t)
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	request, err := NewRequest(key, Identity{Host, "one"})
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte(nil), request...)
	damaged[len(damaged)-1] ^= 1
	for name, row := range map[string]struct {
		request []byte
		id      Identity
	}{
		"another name": {request, Identity{Host, "two"}},
		"another role": {request, Identity{Admin, "one"}},
		"bad name":     {request, Identity{Host, "o/ne"}},
		"damaged":      {damaged, Identity{Host, "one"}},
		"nothing":      {nil, Identity{Host, "one"}},
	} {
		if _, err := a.Sign(row.request, row.id); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestToken(t *testing.T) {
	a := authority(t)
	text, id, hash, err := NewToken(a)
	if err != nil {
		t.Fatal(err)
	}
	token, err := ParseToken(" " + text + "\n")
	if err != nil || token.ID != id || !token.Check(hash) || token.Authority != a.Hash() || token.String() != text {
		t.Errorf("%+v, %v", token, err)
	}
	if strings.Contains(hash, token.Secret) {
		t.Error("the hash shows the secret")
	}
	other, _, otherHash, _ := NewToken(a)
	if other == text || token.Check(otherHash) || token.Check("") {
		t.Error("a token passes for another")
	}
	for _, bad := range []string{"", "a.b.c", text + "0", text[1:], strings.ToUpper(text), strings.ReplaceAll(text, ".", "-")} {
		if _, err := ParseToken(bad); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), token.Secret) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("abcdefghij.abcdefghijabcdefghijabcdef." + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, text string) {
		if token, err := ParseToken(text); err == nil && token.String() != strings.TrimSpace(text) {
			t.Errorf("%q became %q", text, token)
		}
	})
}

// who answers every call with the identity it was made with.
type who struct{ wire.UnimplementedFleetServer }

func (who) Enroll(ctx context.Context, _ *wire.EnrollRequest) (*wire.EnrollReply, error) {
	id, _ := FromContext(ctx)
	return &wire.EnrollReply{Cluster: id.String()}, nil
}

func (who) Session(stream wire.Fleet_SessionServer) error {
	id, _ := FromContext(stream.Context())
	return stream.Send(&wire.Order{Tunnel: &wire.OpenTunnel{Id: id.String()}})
}

func serve(t *testing.T, config *tls.Config, rules Rules) func(*tls.Config) wire.FleetClient {
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(ServerOptions(config, rules)...)
	wire.RegisterFleetServer(server, who{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return func(client *tls.Config) wire.FleetClient {
		connection, err := grpc.NewClient("passthrough:///server", grpc.WithTransportCredentials(credentials.NewTLS(client)),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { connection.Close() })
		return wire.NewFleetClient(connection)
	}
}

func client(t *testing.T, a *Authority, id Identity) *tls.Config {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	request, err := NewRequest(key, id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.Sign(request, id)
	if err != nil {
		t.Fatal(err)
	}
	config, err := AgentTLS(a.Certificate(), func() (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func session(c wire.FleetClient) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := c.Session(ctx)
	if err != nil {
		return "", err
	}
	order, err := stream.Recv()
	return order.GetTunnel().GetId(), err
}

func enroll(c wire.FleetClient) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	reply, err := c.Enroll(ctx, &wire.EnrollRequest{})
	return reply.GetCluster(), err
}

func TestCallsAreGuarded(t *testing.T) {
	a, other := authority(t), authority(t)
	text, _, _, _ := NewToken(a)
	token, _ := ParseToken(text)
	dial := serve(t, ServerTLS(a, "example.org", "192.0.2.1"), FleetRules())
	expect := func(name string, err error, code codes.Code, words string) {
		t.Helper()
		if status.Code(err) != code || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %v %q", name, err, code, words)
		}
	}

	host := dial(client(t, a, Identity{Host, "one"}))
	id, err := session(host)
	if expect("host", err, codes.OK, ""); id != "host:one" {
		t.Errorf("identity %q", id)
	}
	if id, err = enroll(host); err != nil || id != "host:one" {
		t.Errorf("renewal: %q, %v", id, err)
	}
	anonymous := dial(EnrollTLS(token))
	if id, err = enroll(anonymous); err != nil || id != ":" {
		t.Errorf("enrollment: %q, %v", id, err)
	}
	_, err = session(anonymous)
	expect("anonymous", err, codes.Unauthenticated, "certificate is needed")
	_, err = session(dial(client(t, a, Identity{Admin, "root"})))
	expect("admin", err, codes.PermissionDenied, "not for admin:root")

	foreign := client(t, other, Identity{Host, "one"})
	_, err = session(dial(foreign))
	expect("agent of another cluster", err, codes.Unavailable, OtherInstallation)
	foreign.VerifyConnection = nil // one that does not mind
	_, err = session(dial(foreign))
	if err == nil {
		t.Error("a certificate of another authority passes")
	}
	foreignText, _, _, _ := NewToken(other)
	foreignToken, _ := ParseToken(foreignText)
	_, err = enroll(dial(EnrollTLS(foreignToken)))
	expect("token of another cluster", err, codes.Unavailable, OtherInstallation)

	_, err = session(serve(t, ServerTLS(a), Rules{})(client(t, a, Identity{Host, "one"})))
	expect("no rule", err, codes.PermissionDenied, "not open to anyone")
}

func TestExpiredCertificates(t *testing.T) {
	dir := t.TempDir()
	a, err := LoadOrCreateAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	past := *a
	past.now = func() time.Time { return now.Add(-ClientLife - time.Hour) }
	dial := serve(t, ServerTLS(a), FleetRules())
	if _, err := session(dial(client(t, &past, Identity{Host, "one"}))); err == nil {
		t.Error("an expired client certificate passes")
	}
	long := *a
	long.now = func() time.Time { return now.Add(-ServerLife - time.Hour) }
	certificate, err := long.Server()
	if err != nil {
		t.Fatal(err)
	}
	expired := ServerTLS(a)
	expired.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }
	_, err = session(serve(t, expired, FleetRules())(client(t, a, Identity{Host, "one"})))
	if err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired server certificate: %v", err)
	}
}

// TestClientIsNoServer: a host's certificate does not make it a server.
func TestClientIsNoServer(t *testing.T) {
	a := authority(t)
	config := client(t, a, Identity{Host, "one"})
	certificate, err := config.GetClientCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	impostor := ServerTLS(a)
	impostor.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }
	if _, err := session(serve(t, impostor, FleetRules())(config)); err == nil {
		t.Error("a host passes for the server")
	}
}

func TestServerCertificate(t *testing.T) {
	a := authority(t)
	now := time.Now()
	moving := *a
	moving.now = func() time.Time { return now }
	source := &serverSource{authority: &moving, names: []string{"example.org", "192.0.2.1", "::1"}}
	first, err := source.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{ServerName, "example.org", "192.0.2.1", "::1"} {
		if err := first.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if again, _ := source.get(nil); again != first {
		t.Error("made anew too early")
	}
	now = RenewAt(first.Leaf).Add(time.Second)
	if again, _ := source.get(nil); again == first {
		t.Error("not renewed in time")
	}
	if left := first.Leaf.NotAfter.Sub(RenewAt(first.Leaf)); left < ServerLife/4 || left > ServerLife/2 {
		t.Errorf("renewed with %v left", left)
	}
	if first.Leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Error("a server can sign certificates")
	}
}
