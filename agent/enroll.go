package agent

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"hayloft/cloud/fault"
	"hayloft/wire"
	"hayloft/wire/pki"
)

// largestOrder is how large a full set of assignments may be, in bytes.
const largestOrder = 256 << 20

// connect prepares a connection to the server; it is made when the first call needs it.
func (a *Agent) connect(config *tls.Config) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pki.KeepaliveInterval, Timeout: pki.KeepaliveInterval}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: a.pace.retryMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: a.pace.retryMax},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestOrder)),
	}
	target := a.cfg.Server
	if dial := a.cfg.Dial; dial != nil {
		target = "passthrough:///" + target
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dial(ctx, address)
		}))
	}
	connection, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "server %s: %w", a.cfg.Server, err)
	}
	return connection, nil
}

// enroll makes the host a member of the cluster with its token, waiting for a server that is away.
func (a *Agent) enroll(ctx context.Context) error {
	if a.cfg.Token == "" {
		return fault.Errorf(fault.Permission, "host %s: it is not enrolled; a token of the server is needed", a.cfg.Name)
	}
	token, err := pki.ParseToken(a.cfg.Token)
	if err != nil {
		return err
	}
	id := a.self()
	if id == nil {
		if id, err = newIdentity(a.cfg.StateDir, a.cfg.Name); err != nil {
			return err
		}
		a.identityMu.Lock()
		a.identity = id
		a.identityMu.Unlock()
	}
	connection, err := a.connect(pki.EnrollTLS(token))
	if err != nil {
		return err
	}
	defer connection.Close()
	for wait := (retry{pace: a.pace}); ; {
		err := a.request(ctx, connection, token.String(), token.Authority)
		if err == nil {
			a.log.Info("host: enrolled", "host", a.cfg.Name, "cluster", a.self().Cluster)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		if c := status.Code(err); c != codes.Unavailable && c != codes.DeadlineExceeded {
			return fault.Errorf(fault.Permission, "host %s: server %s: %w", a.cfg.Name, a.cfg.Server, err)
		}
		if otherInstallation(err) {
			return fault.Errorf(fault.Permission, "host %s: %s: %w", a.cfg.Name, a.cfg.Server, err)
		}
		a.log.Warn("host: server not reached for enrolling", "server", a.cfg.Server, "error", err)
		if !wait.pause(ctx) {
			return nil
		}
	}
}

// request asks for a certificate and keeps it. authority is the hash that the cluster's must have.
func (a *Agent) request(ctx context.Context, connection *grpc.ClientConn, token, authority string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	old := a.self()
	csr, err := pki.NewRequest(old.key, pki.Identity{Role: pki.Host, Name: a.cfg.Name})
	if err != nil {
		return err
	}
	reply, err := wire.NewFleetClient(connection).Enroll(ctx, &wire.EnrollRequest{Token: token, HostName: a.cfg.Name, CertificateRequest: csr})
	if err != nil {
		return err
	}
	id := &identity{Host: a.cfg.Name, Cluster: reply.Cluster, Key: old.Key, Certificate: reply.Certificate, Authority: reply.Authority}
	if err := id.parse(); err != nil {
		return fault.Errorf(fault.Corrupt, "the server's certificate for this host: %w", err)
	}
	switch {
	case pki.HashOf(reply.Authority) != authority:
		return fault.Errorf(fault.Permission, "the server answers for another authority than it was asked for")
	case !id.enrolled() || !id.key.PublicKey.Equal(id.leaf.PublicKey):
		return fault.Errorf(fault.Corrupt, "the server's certificate is not for this host's key")
	case old.Cluster != "" && old.Cluster != reply.Cluster:
		return fault.Errorf(fault.WrongState, "the server is of installation %s, this host of %s", reply.Cluster, old.Cluster)
	}
	return a.become(id)
}

// renew replaces the host's certificate in time, for as long as ctx lasts.
func (a *Agent) renew(ctx context.Context, connection *grpc.ClientConn) {
	for pause(ctx, a.pace.renew) {
		id := a.self()
		if time.Now().Before(pki.RenewAt(id.leaf)) {
			continue
		}
		if err := a.request(ctx, connection, "", pki.HashOf(id.Authority)); err != nil {
			a.complain(ctx, "host: certificate not renewed", err)
			continue
		}
		a.log.Info("host: certificate renewed", "until", a.self().leaf.NotAfter)
	}
}
