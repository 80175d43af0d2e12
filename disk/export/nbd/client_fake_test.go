package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// TestGivenUpInTheMiddle: a request is given up while its message is under way in either direction; its buffer is the
// caller's again, and the next connection serves.
func TestGivenUpInTheMiddle(t *testing.T) {
	good := func(r *raw) {
		head := make([]byte, requestSize)
		if _, err := io.ReadFull(r, head); err != nil {
			return
		}
		q, _ := parseRequest(head)
		r.Write(bytesOf(uint32(magicSimple), uint32(0), q.cookie, "abcdefghij"))
		io.Copy(io.Discard, r)
	}
	for name, tt := range map[string]struct {
		server func(begun chan<- struct{}) func(*raw)
		ask    func(context.Context, *Client) error
	}{
		"receiving": {func(begun chan<- struct{}) func(*raw) {
			return func(r *raw) {
				io.ReadFull(r, make([]byte, requestSize))
				r.Write(bytesOf(uint32(magicSimple), uint32(0), uint64(1), "half of it"))
				close(begun)
				io.Copy(io.Discard, r)
			}
		}, func(ctx context.Context, c *Client) error { return c.Read(ctx, make([]byte, 1<<20), 0) }},
		"sending": {func(begun chan<- struct{}) func(*raw) {
			return func(r *raw) {
				io.ReadFull(r, make([]byte, requestSize))
				close(begun)
				for { // without reading, until the client goes away
					if _, err := r.Write(nil); err != nil {
						return
					}
					p := [1]unix.PollFd{{Events: unix.POLLRDHUP}}
					sys, _ := r.Conn.(*net.UnixConn).SyscallConn()
					sys.Control(func(fd uintptr) { p[0].Fd = int32(fd); unix.Poll(p[:], 1000) })
					if p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0 {
						return
					}
				}
			}
		}, func(ctx context.Context, c *Client) error { return c.Write(ctx, make([]byte, 16<<20), 0, false) }},
	} {
		t.Run(name, func(t *testing.T) {
			begun := make(chan struct{})
			c := dial(t, fake(t, 16<<20, flagHasFlags, false, tt.server(begun), good), Dialer{Patience: longest})
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-begun
				wait(t, func() bool {
					c.mu.Lock()
					defer c.mu.Unlock()
					return c.calls[1] != nil && c.calls[1].busy
				})
				cancel()
			}()
			if err := tt.ask(ctx, c); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			p := make([]byte, 10)
			if err := c.Read(t.Context(), p, 0); err != nil || string(p) != "abcdefghij" {
				t.Errorf("%q %v", p, err)
			}
		})
	}
}

// fake is a server by hand: each connection goes to the next function, with the handshake done.
func fake(t *testing.T, size uint64, flags uint16, structured bool, each ...func(r *raw)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fake")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, f := range each {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fakeHandshake(conn, size, flags, structured)
			f(&raw{t, conn})
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return path
}

func fakeHandshake(conn net.Conn, size uint64, flags uint16, structured bool) {
	reply := func(option, kind uint32, data ...any) {
		p := bytesOf(data...)
		conn.Write(bytesOf(uint64(magicOptionReply), option, kind, uint32(len(p)), p))
	}
	conn.Write(bytesOf(uint64(magicServer), uint64(magicOption), uint16(3)))
	io.ReadFull(conn, make([]byte, 4))
	head := make([]byte, 16)
	for {
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		option := uint32(head[11])
		io.ReadFull(conn, make([]byte, head[15]))
		switch {
		case option == optStructuredReply && structured:
			reply(option, repAck)
		case option == optSetMeta:
			reply(option, repMeta, uint32(9), contextAllocation)
			reply(option, repAck)
		case option == optGo:
			reply(option, repInfo, uint16(infoExport), size, flags)
			reply(option, repAck)
			return
		default:
			reply(option, repUnsupported, "no")
		}
	}
}

// TestPlainServer: one without structured replies, contexts, flush, FUA and zeroes.
func TestPlainServer(t *testing.T) {
	content := pattern(1000, 5)
	path := fake(t, 1000, flagHasFlags, false, func(r *raw) {
		for {
			p := make([]byte, requestSize)
			if _, err := io.ReadFull(r, p); err != nil {
				return
			}
			q, _ := parseRequest(p)
			switch q.command {
			case cmdRead:
				r.Write(bytesOf(uint32(magicSimple), uint32(0), q.cookie, content[q.offset:][:q.length]))
			case cmdWrite:
				io.ReadFull(r, content[q.offset:][:q.length])
				r.Write(bytesOf(uint32(magicSimple), uint32(0), q.cookie))
			default:
				t.Errorf("command %d was not offered", q.command)
				return
			}
		}
	})
	c := dial(t, path, Dialer{})
	got := make([]byte, 1000)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, pattern(1000, 5)) {
		t.Error(err)
	}
	if err := c.Write(t.Context(), got, 0, true); err != nil {
		t.Error(err)
	}
	if err := c.Trim(t.Context(), 0, 10); err != nil {
		t.Error(err)
	}
	if err := c.Discard(0, 1000); err != nil {
		t.Error(err)
	}
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, make([]byte, 1000)) {
		t.Error("not zeroed", err)
	}
	if start, end, err := c.NextData(10); start != 10 || end != 1000 || err != nil {
		t.Error(start, end, err)
	}
}

// TestLyingServer: a broken reply is Corrupt for those who wait, and the next connection serves.
func TestLyingServer(t *testing.T) {
	data := func(flags uint16, offset uint64, p string) []byte {
		return bytesOf(uint32(magicStructured), flags, uint16(replyData), uint64(1), uint32(8+len(p)), offset, p)
	}
	for name, lie := range map[string][]byte{
		"magic":        make([]byte, 100),
		"cookie":       bytesOf(uint32(magicSimple), uint32(0), uint64(77)),
		"simple":       bytesOf(uint32(magicSimple), uint32(0), uint64(1)),
		"before":       data(1, 0, "xx"),
		"beyond":       data(1, 18, "xyz"),
		"too much":     bytesOf(data(0, 10, "0123456789"), data(1, 10, "0")),
		"too little":   data(1, 10, "012345678"),
		"status":       bytesOf(uint32(magicStructured), uint16(1), uint16(replyStatus), uint64(1), uint32(12), uint32(9), uint64(5)),
		"unknown type": bytesOf(uint32(magicStructured), uint16(1), uint16(77), uint64(1), uint32(0)),
		"error":        bytesOf(uint32(magicStructured), uint16(1), uint16(replyError), uint64(1), uint32(6), uint32(5), uint16(9)),
	} {
		t.Run(name, func(t *testing.T) {
			answer := func(p []byte) func(*raw) {
				return func(r *raw) {
					if _, err := io.ReadFull(r, make([]byte, requestSize)); err == nil {
						r.Write(p)
						io.Copy(io.Discard, r)
					}
				}
			}
			good := bytesOf(uint32(magicStructured), uint16(1), uint16(replyData), uint64(2), uint32(18), uint64(10), "abcdefghij")
			c := dial(t, fake(t, 100, flagHasFlags, true, answer(lie), answer(good)), Dialer{Patience: longest})
			p := make([]byte, 10)
			if err := c.Read(t.Context(), p, 10); !fault.Is(err, fault.Corrupt) {
				t.Fatal(err)
			}
			if err := c.Read(t.Context(), p, 10); err != nil || string(p) != "abcdefghij" {
				t.Errorf("%s %v", p, err)
			}
		})
	}
}
