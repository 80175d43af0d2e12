package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/wire"
)

// consoleLog is how much of a console's past a console-log tunnel carries, in bytes.
const consoleLog = 256 << 10

// tunnel answers one order to open a tunnel: it carries bytes between the server and something of the
// machine until either side ends.
func (a *Agent) tunnel(ctx context.Context, client wire.FleetClient, order *wire.OpenTunnel) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Tunnel(ctx)
	if err != nil {
		a.complain(ctx, "tunnel: server not reached", err)
		return
	}
	end, err := a.openEnd(ctx, order)
	first := &wire.Frame{Tunnel: order.Id}
	if err != nil {
		first.Error = err.Error()
	}
	if sendErr := stream.Send(first); sendErr != nil || err != nil {
		if end != nil {
			end.Close()
		}
		_ = stream.CloseSend() // nothing more to say, heard or not
		_, _ = stream.Recv()   // until the server has taken the first frame
		return
	}
	stop := context.AfterFunc(ctx, func() { end.Close() }) // ends a read of either side
	defer stop()
	carry(stream, end, cancel)
}

// carry copies both ways. The end of what the machine says closes the sending half; the end of what the
// server says closes the machine's writing half where it has one. Both ended, or an error: all is over.
func carry(stream wire.Fleet_TunnelClient, end io.ReadWriteCloser, cancel func()) {
	var up sync.WaitGroup
	up.Go(func() {
		buffer := make([]byte, 32<<10)
		for {
			n, err := end.Read(buffer)
			if n > 0 && stream.Send(&wire.Frame{Data: slices.Clone(buffer[:n])}) != nil {
				cancel()
				return
			}
			if err != nil {
				_ = stream.CloseSend() // the stream may be over already
				return
			}
		}
	})
	for {
		frame, err := stream.Recv()
		switch {
		case err == nil && len(frame.Data) > 0:
			_, err = end.Write(frame.Data)
		case err == nil: // the end of the server's input, while it goes on listening
			if half, ok := end.(interface{ CloseWrite() error }); ok {
				err = half.CloseWrite()
			}
		}
		if err == nil {
			continue
		}
		half, ok := end.(interface{ CloseWrite() error })
		if !errors.Is(err, io.EOF) || !ok || half.CloseWrite() != nil {
			cancel()
			end.Close()
		}
		break
	}
	up.Wait()
	end.Close()
}

// openEnd opens the machine's side of a tunnel.
func (a *Agent) openEnd(ctx context.Context, order *wire.OpenTunnel) (io.ReadWriteCloser, error) {
	a.mu.Lock()
	m := a.machines[order.Vm]
	var machine *wire.Machine
	if m != nil && !m.dropped {
		machine = m.assignment.GetMachine()
	}
	a.mu.Unlock()
	if machine == nil {
		return nil, fault.Errorf(fault.NotFound, "machine %d: not on host %s", order.Vm, a.cfg.Name)
	}
	switch order.Kind {
	case "console", "console-log":
		return a.openConsole(ctx, machine, order)
	case "tcp":
		return dialMachine(ctx, machine, order)
	case "vnc":
		if machine.Graphics == nil || machine.Graphics.Port == 0 {
			return nil, fault.Errorf(fault.NotFound, "machine %d: it has no screen", order.Vm)
		}
		listen := machine.Graphics.Listen
		if ip, err := netip.ParseAddr(listen); listen == "" || err == nil && ip.IsUnspecified() {
			listen = "127.0.0.1"
		}
		return dial(ctx, order.Vm, listen, machine.Graphics.Port)
	}
	return nil, fault.Errorf(fault.Invalid, "machine %d: tunnels of kind %q are unknown", order.Vm, order.Kind)
}

func (a *Agent) openConsole(ctx context.Context, machine *wire.Machine, order *wire.OpenTunnel) (io.ReadWriteCloser, error) {
	console, ok := a.cfg.Hypervisors[machine.Hypervisor].(hypervisor.Consoler)
	if !ok {
		return nil, fault.Errorf(fault.Unsupported, "machine %d: %s has no console", order.Vm, machine.Hypervisor)
	}
	if order.Kind == "console" {
		return console.Console(ctx, int(order.Vm))
	}
	content, err := console.ConsoleLog(ctx, int(order.Vm), consoleLog)
	if err != nil {
		return nil, err
	}
	return &past{content: content}, nil
}

// past is a console's log as something to read.
type past struct{ content []byte }

func (p *past) Read(b []byte) (int, error) {
	if len(p.content) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.content)
	p.content = p.content[n:]
	return n, nil
}

func (p *past) Write(b []byte) (int, error) { return len(b), nil }
func (p *past) CloseWrite() error           { return nil }
func (p *past) Close() error                { return nil }

// dialMachine connects to one of the machine's own addresses: a tunnel reaches nothing else.
func dialMachine(ctx context.Context, machine *wire.Machine, order *wire.OpenTunnel) (io.ReadWriteCloser, error) {
	err := fault.Errorf(fault.NotFound, "machine %d: it has no address", order.Vm)
	for _, nic := range machine.Nics {
		for _, ip := range nic.Ips {
			var connection io.ReadWriteCloser
			if connection, err = dial(ctx, order.Vm, ip, order.Port); err == nil {
				return connection, nil
			}
		}
	}
	return nil, err
}

func dial(ctx context.Context, vm int64, host string, port int32) (io.ReadWriteCloser, error) {
	if port <= 0 || port > 65535 {
		return nil, fault.Errorf(fault.Invalid, "machine %d: %d is not a port", vm, port)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return nil, fault.Errorf(fault.Invalid, "machine %d: %w", vm, err)
	}
	connection, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("machine %d: %w", vm, err))
	}
	return connection, nil
}
