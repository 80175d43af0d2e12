package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"

	"hayloft/cloud/fault"
)

// peerTerms are what a client and its server agreed on.
type peerTerms struct {
	size       int64
	flags      uint16
	structured bool
	context    bool // the metadata context that was asked for
	contextID  uint32
}

// connect opens a connection and negotiates.
func (c *Client) connect(ctx context.Context) (net.Conn, *bufio.Reader, peerTerms, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, c.network, c.address)
	if err != nil {
		return nil, nil, peerTerms{}, c.errorf(fault.Unavailable, "%w", err)
	}
	_ = conn.SetDeadline(time.Now().Add(negotiationTime)) // before that of the context, which is the last word
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	n := clientNegotiation{in: bufio.NewReaderSize(conn, clientBuffer), out: conn, name: c.name, context: contextAllocation}
	if c.dialer.Depth {
		n.context = contextDepth
	}
	err = n.run()
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		class := fault.ClassOf(err)
		if class == fault.Internal { // of the connection
			class = fault.Unavailable
		}
		return nil, nil, peerTerms{}, c.errorf(class, "%w", err)
	}
	return conn, n.in, n.terms, nil
}

// clientNegotiation is the client's side of "Fixed newstyle negotiation".
type clientNegotiation struct {
	in      *bufio.Reader
	out     io.Writer
	name    string
	context string // metadata context that is asked for
	terms   peerTerms
}

func (n *clientNegotiation) run() error {
	var hello [18]byte
	if _, err := io.ReadFull(n.in, hello[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello[:]) != magicServer {
		return fault.Errorf(fault.Corrupt, "not an NBD server")
	}
	flags := binary.BigEndian.Uint16(hello[16:])
	if binary.BigEndian.Uint64(hello[8:]) != magicOption || flags&handshakeFixed == 0 {
		return fault.Errorf(fault.Unsupported, "the server has no fixed newstyle negotiation")
	}
	word := binary.BigEndian.AppendUint32(nil, uint32(flags&(handshakeFixed|handshakeNoZeroes)))
	if _, err := n.out.Write(word); err != nil {
		return err
	}
	kind, _, err := n.ask(optStructuredReply, nil, nil)
	if err != nil {
		return err
	}
	n.terms.structured = kind == repAck
	if n.terms.structured {
		if err := n.askContext(); err != nil {
			return err
		}
	}
	return n.askGo()
}

// ask sends an option and reads its replies: each that is not the last goes to each, which may be nil.
func (n *clientNegotiation) ask(option uint32, data []byte, each func(kind uint32, data []byte) error) (kind uint32, answer []byte, err error) {
	p := binary.BigEndian.AppendUint64(nil, magicOption)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	if _, err := n.out.Write(append(p, data...)); err != nil {
		return 0, nil, err
	}
	for range maxOptions {
		var head [20]byte
		if _, err := io.ReadFull(n.in, head[:]); err != nil {
			return 0, nil, err
		}
		length := binary.BigEndian.Uint32(head[16:])
		if binary.BigEndian.Uint64(head[:]) != magicOptionReply || binary.BigEndian.Uint32(head[8:]) != option || length > maxOption {
			return 0, nil, fault.Errorf(fault.Corrupt, "the server's reply to option %d is not one", option)
		}
		answer = make([]byte, length)
		if _, err := io.ReadFull(n.in, answer); err != nil {
			return 0, nil, err
		}
		kind = binary.BigEndian.Uint32(head[12:])
		if kind == repAck || kind&repError != 0 {
			return kind, answer, nil
		}
		if each != nil {
			if err := each(kind, answer); err != nil {
				return 0, nil, err
			}
		}
	}
	return 0, nil, fault.Errorf(fault.Corrupt, "the server's replies to option %d do not end", option)
}

func withLength(p []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(p, uint32(len(s))), s...)
}

// askContext is NBD_OPT_SET_META_CONTEXT; a server may have none.
func (n *clientNegotiation) askContext() error {
	data := withLength(nil, n.name)
	data = withLength(binary.BigEndian.AppendUint32(data, 1), n.context)
	found := false
	kind, _, err := n.ask(optSetMeta, data, func(kind uint32, data []byte) error {
		if kind == repMeta && len(data) >= 4 && string(data[4:]) == n.context {
			found, n.terms.contextID = true, binary.BigEndian.Uint32(data)
		}
		return nil
	})
	n.terms.context = found && kind == repAck
	return err
}

// askGo is NBD_OPT_GO.
func (n *clientNegotiation) askGo() error {
	found := false
	kind, message, err := n.ask(optGo, binary.BigEndian.AppendUint16(withLength(nil, n.name), 0), func(kind uint32, data []byte) error {
		if kind != repInfo || len(data) < 2 || binary.BigEndian.Uint16(data) != infoExport {
			return nil
		}
		if len(data) != 12 || binary.BigEndian.Uint64(data[2:]) > 1<<63-1 {
			return fault.Errorf(fault.Corrupt, "the server's description of the export is none")
		}
		found = true
		n.terms.size, n.terms.flags = int64(binary.BigEndian.Uint64(data[2:])), binary.BigEndian.Uint16(data[10:])
		return nil
	})
	switch {
	case err != nil:
		return err
	case kind == repUnknown:
		return fault.Errorf(fault.NotFound, "the server does not have it: %s", message)
	case kind == repShutdown:
		return fault.Errorf(fault.Unavailable, "the server is going away: %s", message)
	case kind == repUnsupported:
		return fault.Errorf(fault.Unsupported, "the server does not know NBD_OPT_GO")
	case kind == repPolicy:
		return fault.Errorf(fault.Permission, "the server does not allow it: %s", message)
	case kind != repAck:
		return fault.Errorf(fault.Invalid, "the server refuses it (%#x): %s", kind, message)
	case !found:
		return fault.Errorf(fault.Corrupt, "the server did not describe the export")
	}
	return nil
}
