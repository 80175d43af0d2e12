package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Rule says who may make a call.
type Rule struct {
	Anonymous bool   // also without a certificate
	Roles     []Role // with a certificate of one of these roles
}

// Rules holds the rule of each gRPC method by its full name ("/service/method"). A method without a rule
// is refused.
type Rules map[string]Rule

// FleetRules are those of the service between server and agents.
func FleetRules() Rules {
	return Rules{
		"/hayloft.wire.v1.Fleet/Enroll":  {Anonymous: true, Roles: []Role{Host}},
		"/hayloft.wire.v1.Fleet/Session": {Roles: []Role{Host}},
		"/hayloft.wire.v1.Fleet/Tunnel":  {Roles: []Role{Host}},
	}
}

// KeepaliveInterval is how often an agent asks a silent connection for a sign of life.
const KeepaliveInterval = 10 * time.Second

// ServerOptions are what a gRPC server of the cluster needs: TLS, the check of every call against rules, a Stop that returns when
// no call is served any more, and patience with the keepalives of agents.
func ServerOptions(config *tls.Config, rules Rules) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(config)),
		grpc.ChainUnaryInterceptor(rules.Unary),
		grpc.ChainStreamInterceptor(rules.Stream),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: KeepaliveInterval / 2, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: KeepaliveInterval, Timeout: KeepaliveInterval}),
	}
}

// Unary is the interceptor for single calls.
func (r Rules) Unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, err := r.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

// Stream is the interceptor for streams.
func (r Rules) Stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := r.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handler(server, &identified{stream, ctx})
}

type identified struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *identified) Context() context.Context { return s.ctx }

type identityKey struct{}

// FromContext is who makes the call that ctx belongs to; false for a caller without a certificate.
func FromContext(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(identityKey{}).(Identity)
	return id, ok
}

// WithIdentity is a context as FromContext reads it.
func WithIdentity(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

func (r Rules) admit(ctx context.Context, method string) (context.Context, error) {
	rule, known := r[method]
	if !known {
		return nil, status.Errorf(codes.PermissionDenied, "%s: not open to anyone", method)
	}
	certificate := peerCertificate(ctx)
	if certificate == nil {
		if rule.Anonymous {
			return ctx, nil
		}
		return nil, status.Errorf(codes.Unauthenticated, "%s: a client certificate is needed", method)
	}
	id, err := ParseIdentity(certificate.Subject.CommonName)
	if err != nil {
		return nil, status.Errorf(codes.PermissionDenied, "%s: %v", method, err)
	}
	if !slices.Contains(rule.Roles, id.Role) {
		return nil, status.Errorf(codes.PermissionDenied, "%s: not for %s", method, id)
	}
	return WithIdentity(ctx, id), nil
}

// peerCertificate is the verified client certificate of a call, nil when there is none.
func peerCertificate(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}
