package fleet

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hayloft/cloud/fault"
	"hayloft/wire"
	"hayloft/wire/pki"
)

// pending is a tunnel that has been ordered and waits for the agent to dial.
type pending struct {
	host    string // only this host may answer
	arrived chan *Tunnel
}

// Tunnel is a stream of bytes to something of a machine, by way of its host. Closing it ends both sides.
type Tunnel struct {
	stream grpc.BidiStreamingServer[wire.Frame, wire.Frame]
	rest   []byte
	failed error
	close  context.CancelFunc
}

// OpenTunnel asks the machine's host for a stream: kind is "console", "console-log", "vnc", or "tcp" with
// a port of the guest. Errors: fault.Unavailable when the host is not connected, or the agent's own.
func (f *Fleet) OpenTunnel(ctx context.Context, vm int, kind string, port int) (*Tunnel, error) {
	machine, err := f.inv.VM(vm)
	if err != nil {
		return nil, err
	}
	id := randomID()
	f.mu.Lock()
	s := f.sessions[machine.HostID]
	if s == nil {
		f.mu.Unlock()
		return nil, fault.Errorf(fault.Unavailable, "vm %d: it is on no host that is connected here", vm)
	}
	p := &pending{host: s.host.Name, arrived: make(chan *Tunnel, 1)}
	f.tunnels[id] = p
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.tunnels, id)
		f.mu.Unlock()
	}()
	order := &wire.Order{Tunnel: &wire.OpenTunnel{Id: id, Vm: int64(vm), Kind: kind, Port: int32(port)}}
	if err := s.transmit(order); err != nil {
		return nil, fault.Errorf(fault.Unavailable, "vm %d: host %s: %w", vm, s.host.Name, err)
	}
	select {
	case t := <-p.arrived:
		if t.failed != nil {
			_ = t.Close()
			return nil, fault.Errorf(fault.Unavailable, "vm %d: %s: %w", vm, kind, t.failed)
		}
		return t, nil
	case <-ctx.Done():
		f.mu.Lock()
		delete(f.tunnels, id)
		f.mu.Unlock()
		select {
		case late := <-p.arrived:
			_ = late.Close()
		default:
		}
		return nil, fault.Errorf(fault.Unavailable, "vm %d: host %s did not open the %s: %w", vm, s.host.Name, kind, ctx.Err())
	}
}

// Tunnel takes an agent's answer to an order.
func (f *Fleet) Tunnel(stream grpc.BidiStreamingServer[wire.Frame, wire.Frame]) error {
	caller, ok := pki.FromContext(stream.Context())
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	t := &Tunnel{stream: stream, rest: first.Data, close: cancel}
	if first.Error != "" {
		t.failed = errors.New(first.Error)
	}
	f.mu.Lock()
	p := f.tunnels[first.Tunnel]
	delete(f.tunnels, first.Tunnel)
	good := p != nil && ok && caller.Role == pki.Host && caller.Name == p.host
	if good {
		p.arrived <- t // under the lock, so that who gives up waiting finds it there, or nobody comes any more
	}
	f.mu.Unlock()
	if !good {
		return status.Error(codes.NotFound, "nobody waits for this tunnel")
	}
	<-ctx.Done()
	return nil
}

// Read implements io.Reader. An error that the agent sends is returned as such.
func (t *Tunnel) Read(p []byte) (int, error) {
	for len(t.rest) == 0 {
		if t.failed != nil {
			return 0, t.failed
		}
		frame, err := t.stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
				return 0, io.EOF
			}
			return 0, err
		}
		if frame.Error != "" {
			t.failed = errors.New(frame.Error)
		}
		t.rest = frame.Data
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// Write implements io.Writer.
func (t *Tunnel) Write(p []byte) (int, error) {
	const most = 64 << 10
	for done := 0; done < len(p); done += most {
		if err := t.stream.Send(&wire.Frame{Data: p[done:min(done+most, len(p))]}); err != nil {
			return done, err
		}
	}
	return len(p), nil
}

// CloseWrite tells the far side that nothing more will be written: an empty frame.
func (t *Tunnel) CloseWrite() error { return t.stream.Send(&wire.Frame{}) }

// Close ends the tunnel.
func (t *Tunnel) Close() error {
	t.close()
	return nil
}
