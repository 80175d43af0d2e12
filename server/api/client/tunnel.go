package client

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// Kinds of tunnels.
const (
	TunnelConsole    = "console"     // the serial console, both ways
	TunnelConsoleLog = "console-log" // what it has printed, then the end
	TunnelVNC        = "vnc"
	TunnelTCP        = "tcp" // a port of the guest
)

// Conn is a tunnel. CloseWrite tells the other end that nothing more comes.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Tunnel connects to something of a machine that runs. port is for TunnelTCP. ctx is for the setting up
// only: the tunnel lasts until Close.
func (c *Client) Tunnel(ctx context.Context, id int, kind string, port int) (Conn, error) {
	query := url.Values{"kind": {kind}}
	if kind == TunnelTCP {
		query.Set("port", strconv.Itoa(port))
	}
	conn, err := c.dial(ctx, "", "")
	if err != nil {
		return nil, c.unreachable(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	t, err := upgrade(conn, c.url(vmPath(id)+"/tunnel", query))
	if !stop() {
		_ = conn.Close()
		return nil, c.unreachable(ctx.Err())
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return t, nil
}

func upgrade(conn net.Conn, target string) (*tunnel, error) {
	request, err := http.NewRequest(http.MethodGet, target, nil)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", api.TunnelProtocol)
	if err := request.Write(conn); err != nil {
		return nil, fault.Errorf(fault.Unavailable, "tunnel: %w", err)
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, fault.Errorf(fault.Unavailable, "tunnel: %w", err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		return nil, refused(response)
	}
	return &tunnel{Conn: conn, reader: reader}, nil
}

// tunnel reads what came with the answer's head before the rest.
type tunnel struct {
	net.Conn
	reader *bufio.Reader
}

func (t *tunnel) Read(p []byte) (int, error) { return t.reader.Read(p) }

func (t *tunnel) CloseWrite() error {
	if half, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return fault.Errorf(fault.Unsupported, "tunnel: cannot be closed in one direction")
}
