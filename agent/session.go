package agent

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"hayloft/wire"
	"hayloft/wire/pki"
)

// otherInstallation finds the words of pki in an error that gRPC has turned into text.
func otherInstallation(err error) bool { return strings.Contains(err.Error(), pki.OtherInstallation) }

// retry is the pause between attempts: none after the first failure, then longer and longer, with jitter.
type retry struct {
	pace pace
	next time.Duration
	used bool
}

func (r *retry) pause(ctx context.Context) bool {
	if !r.used {
		r.used = true
		return ctx.Err() == nil
	}
	r.next = min(max(r.pace.retryMin, r.next*8/5), r.pace.retryMax)
	return pause(ctx, r.next/2+rand.N(r.next))
}

func (r *retry) reset() { r.used, r.next = false, 0 }

// serve enrolls the host when needed and then keeps a session with the server until ctx ends.
func (a *Agent) serve(ctx context.Context) error {
	if !a.self().enrolled() {
		if err := a.enroll(ctx); err != nil || ctx.Err() != nil {
			return err
		}
	}
	config, err := pki.AgentTLS(a.self().Authority, a.certificate)
	if err != nil {
		return err
	}
	connection, err := a.connect(config)
	if err != nil {
		return err
	}
	defer connection.Close()
	var renewing sync.WaitGroup
	defer renewing.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	renewing.Go(func() { a.renew(ctx, connection) })
	last := ""
	for wait := (retry{pace: a.pace}); ; {
		begin := time.Now()
		began, err := a.session(ctx, connection)
		if ctx.Err() != nil {
			return nil
		}
		if began && time.Since(begin) > a.pace.retryMax { // else a server that ends every session would be stormed
			wait.reset()
			last = ""
		}
		if words := err.Error(); words != last {
			a.log.Warn("host: no session with the server", "server", a.cfg.Server, "error", err)
			last = words
		}
		if !wait.pause(ctx) {
			return nil
		}
	}
}

// session is one stream with the server. It began when the server's first order came.
func (a *Agent) session(ctx context.Context, connection *grpc.ClientConn) (began bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := wire.NewFleetClient(connection)
	stream, err := client.Session(ctx)
	if err != nil {
		return false, err
	}
	out := &sender{stream: stream}
	if err := out.send(&wire.Report{Hello: &wire.Hello{HostName: a.cfg.Name, Version: a.cfg.Version, Cluster: a.self().Cluster}}); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel(nil)
	parts.Go(func() { cancel(a.hostReports(ctx, out.send)) })
	parts.Go(func() { cancel(a.machineReports(ctx, out.send)) })
	parts.Go(func() { cancel(a.prefetchReports(ctx, out.send)) })
	for {
		order, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, io.EOF) && !errors.Is(cause, context.Canceled) {
				err = cause
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("the server ended the session")
			}
			return began, err
		}
		if !began {
			began = true
			a.log.Info("host: session with the server", "server", a.cfg.Server)
		}
		if order.Tunnel != nil {
			parts.Go(func() { a.tunnel(ctx, client, order.Tunnel) })
		}
		if order.Prefetches != nil {
			a.prefetches.want(order.Prefetches.All)
		}
		if err := a.accept(order); err != nil {
			return began, err
		}
	}
}

// sender lets several goroutines send on one stream.
type sender struct {
	mu     sync.Mutex
	stream wire.Fleet_SessionClient
}

func (s *sender) send(report *wire.Report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(report)
}

// machineReports sends what is new of machines: changes within a few milliseconds, or for as long as the
// stream is not free, go together.
func (a *Agent) machineReports(ctx context.Context, send func(*wire.Report) error) error {
	for {
		select {
		case <-a.bell:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !pause(ctx, a.pace.coalesce) {
			return context.Cause(ctx)
		}
		reports := a.news()
		if len(reports) == 0 {
			continue
		}
		if err := send(&wire.Report{Machines: reports}); err != nil {
			return err
		}
	}
}
