package nbd

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"hayloft/cloud/fault"
)

// Client reads and writes an export of another process over one connection, many requests at a time. When the
// connection breaks it connects again and asks again what was not answered; what cannot be answered for as long as
// its patience fails with fault.Unavailable, and later requests are tried anew. Errors name export and address and
// are classified. Safe for concurrent use.
type Client struct {
	dialer  Dialer
	network string
	address string
	name    string
	log     *slog.Logger
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	ended   chan struct{}
	peer    peerTerms // as first negotiated; a server that comes back must not differ

	mu      sync.Mutex
	idle    sync.Cond // a call is no longer busy
	calls   map[uint64]*call
	queue   []*call // to be sent, in order
	wake    chan struct{}
	session net.Conn // nil while there is none
	cookie  uint64
}

// Dialer has what Dial takes for granted.
type Dialer struct {
	Patience time.Duration // how long a request waits for a server that is away; 0: 30 seconds
	Log      *slog.Logger  // nil: slog.Default()
	// Whole asks for each read in one piece, where the server can: it need not look for holes then, which takes long on
	// some storage.
	Whole bool
	// Depth asks for QEMU's metadata context qemu:allocation-depth instead of base:allocation: see Client.Depths.
	Depth bool
}

const defaultPatience = 30 * time.Second

// Dial connects to an export: network "unix" or "tcp", as for net.Dial. ctx bounds the connecting, and the whole life
// of the Client. Errors: fault.Unavailable when the server cannot be reached, fault.NotFound for the export,
// fault.Unsupported for a server that has no fixed newstyle negotiation.
func Dial(ctx context.Context, network, address, exportName string) (*Client, error) {
	return Dialer{}.Dial(ctx, network, address, exportName)
}

// Dial is the function Dial with other settings.
func (d Dialer) Dial(ctx context.Context, network, address, exportName string) (*Client, error) {
	if d.Patience == 0 {
		d.Patience = defaultPatience
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	if len(exportName) > maxString {
		return nil, fault.Errorf(fault.Invalid, "nbd export with a name of %d bytes", len(exportName))
	}
	c := &Client{dialer: d, network: network, address: address, name: exportName, ended: make(chan struct{}),
		calls: map[uint64]*call{}, wake: make(chan struct{}, 1)}
	c.idle.L = &c.mu
	c.log = d.Log.With("export", exportName, "address", address)
	conn, in, terms, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.peer = terms
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.session = conn
	go c.run(conn, in)
	return c, nil
}

// errorf makes an error that says which export.
func (c *Client) errorf(class fault.Class, format string, args ...any) error {
	return fault.Errorf(class, "nbd export %q at %s: "+format, append([]any{c.name, c.address}, args...)...)
}

// Size is the export's, in bytes.
func (c *Client) Size() int64 { return c.peer.size }

// ReadOnly says that the server takes no changes.
func (c *Client) ReadOnly() bool { return c.peer.flags&flagReadOnly != 0 }

// Close ends the connection; requests under way fail.
func (c *Client) Close() error {
	c.cancel()
	<-c.ended
	return nil
}

// split calls f for parts of a range that are short enough for one request.
func split(offset, length, most int64, f func(offset, length int64) error) error {
	for length > 0 {
		n := min(length, most)
		if err := f(offset, n); err != nil {
			return err
		}
		offset += n
		length -= n
	}
	return nil
}

const maxRange = 1 << 30 // of requests without payload

func (c *Client) inside(offset, length int64) error {
	if offset < 0 || offset > c.Size()-length {
		return c.errorf(fault.Invalid, "%d bytes at %d are not within its %d", length, offset, c.Size())
	}
	return nil
}

func (c *Client) changeable(offset, length int64) error {
	if c.ReadOnly() {
		return c.errorf(fault.Permission, "it is read-only")
	}
	return c.inside(offset, length)
}

// Read fills p.
func (c *Client) Read(ctx context.Context, p []byte, offset int64) error {
	if err := c.inside(offset, int64(len(p))); err != nil {
		return err
	}
	var flags uint16
	if c.dialer.Whole && c.peer.structured && c.peer.flags&flagDF != 0 {
		flags = cmdDF
	}
	return split(offset, int64(len(p)), maxPayload, func(at, n int64) error {
		return c.do(ctx, &call{request: request{flags: flags, command: cmdRead, offset: uint64(at), length: uint32(n)}, into: p[at-offset:][:n]})
	})
}

// Write writes p, durably with fua.
func (c *Client) Write(ctx context.Context, p []byte, offset int64, fua bool) error {
	if err := c.changeable(offset, int64(len(p))); err != nil {
		return err
	}
	var flags uint16
	if fua && c.peer.flags&flagFUA != 0 {
		flags, fua = cmdFUA, false
	}
	err := split(offset, int64(len(p)), maxPayload, func(at, n int64) error {
		return c.do(ctx, &call{request: request{flags: flags, command: cmdWrite, offset: uint64(at), length: uint32(n)}, payload: p[at-offset:][:n]})
	})
	if err == nil && fua {
		err = c.Flush(ctx)
	}
	return err
}

// Flush makes what was written before durable. Nothing happens when the server has nothing to flush.
func (c *Client) Flush(ctx context.Context) error {
	if c.peer.flags&flagFlush == 0 {
		return nil
	}
	return c.do(ctx, &call{request: request{command: cmdFlush}})
}

// Trim tells the server that a range is not wanted any more; it may read as anything after that. Nothing happens when
// the server does not care.
func (c *Client) Trim(ctx context.Context, offset, length int64) error {
	if err := c.changeable(offset, length); err != nil || c.peer.flags&flagTrim == 0 {
		return err
	}
	return split(offset, length, maxRange, func(at, n int64) error {
		return c.do(ctx, &call{request: request{command: cmdTrim, offset: uint64(at), length: uint32(n)}})
	})
}

// WriteZeroes makes a range read as zeros; with noHole its space stays allocated. It writes them when the server cannot.
func (c *Client) WriteZeroes(ctx context.Context, offset, length int64, noHole bool) error {
	if err := c.changeable(offset, length); err != nil {
		return err
	}
	if c.peer.flags&flagWriteZeroes == 0 {
		zeros := make([]byte, min(length, piece))
		return split(offset, length, piece, func(at, n int64) error { return c.Write(ctx, zeros[:n], at, false) })
	}
	var flags uint16
	if noHole {
		flags = cmdNoHole
	}
	return split(offset, length, maxRange, func(at, n int64) error {
		return c.do(ctx, &call{request: request{flags: flags, command: cmdWriteZeroes, offset: uint64(at), length: uint32(n)}})
	})
}

// ReadAt implements repository.Source.
func (c *Client) ReadAt(p []byte, offset int64) (int, error) {
	n := int64(len(p))
	if offset < 0 {
		return 0, c.inside(offset, n)
	}
	n = max(0, min(n, c.Size()-offset))
	if err := c.Read(c.ctx, p[:n], min(offset, c.Size())); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// WriteAt implements repository.Target.
func (c *Client) WriteAt(p []byte, offset int64) (int, error) {
	if err := c.Write(c.ctx, p, offset, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Truncate implements repository.Target as far as the protocol can: the size is fixed.
func (c *Client) Truncate(size int64) error {
	if size > c.Size() {
		return c.errorf(fault.Unsupported, "cannot grow from %d to %d bytes", c.Size(), size)
	}
	return nil
}

// Discard implements repository.Target.
func (c *Client) Discard(offset, length int64) error {
	return c.WriteZeroes(c.ctx, offset, length, false)
}

// Sync implements repository.Target.
func (c *Client) Sync() error { return c.Flush(c.ctx) }
