package nbd

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/export"
)

// FuzzNegotiation: whatever a client sends, the server ends, and what it agreed to is what the protocol allows.
func FuzzNegotiation(f *testing.F) {
	option := func(kind uint32, data ...any) []byte {
		p := bytesOf(data...)
		return bytesOf(uint64(magicOption), kind, uint32(len(p)), p)
	}
	hello := bytesOf(uint32(3))
	for _, seed := range [][]byte{
		nil, hello, bytesOf(hello, option(optList)), bytesOf(hello, option(optAbort)), bytesOf(hello, option(optExportName, "disk")),
		bytesOf(hello, option(optStructuredReply), option(optSetMeta, text("disk"), uint32(1), text(contextAllocation)), option(optGo, text("disk"), uint16(1), uint16(3))),
		bytesOf(hello, option(optStructuredReply), option(optListMeta, text(""), uint32(2), text("base:"), text("x"))),
		bytesOf(hello, option(optInfo, text("disk"), uint16(2), uint16(1), uint16(2))), bytesOf(hello, option(4711, "x")),
		bytesOf(hello, option(optSetMeta, uint32(1<<31), "x")),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		n := negotiation{in: bufio.NewReader(bytes.NewReader(p)), out: bufio.NewWriter(io.Discard), names: []string{"disk"},
			terms: terms{size: 1 << 30}, flags: flagHasFlags}
		if err := n.run(); err == nil && n.terms.allocation && !n.terms.structured {
			t.Error("a metadata context without structured replies")
		}
	})
}

// FuzzRequest: whatever a client sends in the transmission phase, the server answers or ends, and goes on with others.
func FuzzRequest(f *testing.F) {
	ask := func(command, flags uint16, offset uint64, length uint32, payload ...any) []byte {
		return bytesOf(uint32(magicRequest), flags, command, uint64(1), offset, length, bytesOf(payload...))
	}
	for _, seed := range [][]byte{
		nil, ask(cmdRead, 0, 0, 100), ask(cmdWrite, cmdFUA, 0, 4, "data"), ask(cmdFlush, 0, 0, 0), ask(cmdTrim, 0, 1, 1), ask(cmdCache, 0, 0, 10),
		ask(cmdWriteZeroes, cmdNoHole|cmdFastZero, 0, 9), ask(cmdBlockStatus, cmdReqOne, 0, 1<<16), ask(cmdDisconnect, 0, 0, 0),
		ask(cmdRead, cmdDF, 1<<63, 1<<31), ask(cmdWrite, 0, 1<<16, 1<<16, "few"), bytesOf(ask(cmdRead, 0, 0, 1<<15), ask(cmdWrite, 0, 1<<15, 3, "abc"), ask(99, 0, 0, 0)),
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	m := newMemory(1 << 16)
	for i := range int64(16) {
		m.extents = append(m.extents, export.Extent{Offset: i << 12, Length: 1 << 12, Zero: i%2 == 0})
	}
	s, err := NewServer(Config{Log: quiet()})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, p []byte, structured bool) {
		ours, theirs := pair(t)
		sock, err := newSocket(ours, s.config.Budget)
		if err != nil {
			t.Fatal(err)
		}
		c := newConnection(t.Context(), s, sock, quickMemory{memory: m, missFrom: 1 << 15}, terms{size: 1 << 16, structured: structured, allocation: structured}, nil)
		read := make(chan []byte)
		go func() { // answers, to their end
			all, _ := io.ReadAll(theirs)
			read <- all
		}()
		go func() {
			_, _ = theirs.Write(p)
			_ = theirs.CloseWrite()
		}()
		err = c.run()
		sock.stand()
		c.share.wait()
		ours.Close()
		checkReplies(t, <-read, err)
		theirs.Close()
	})
}

// checkReplies: everything that the server sent begins like a reply.
func checkReplies(t *testing.T, all []byte, err error) {
	if len(all) == 0 {
		return
	}
	if m := uint32(all[0])<<24 | uint32(all[1])<<16 | uint32(all[2])<<8 | uint32(all[3]); m != magicSimple && m != magicStructured {
		t.Errorf("answer %x (%v)", all[:4], err)
	}
}

func pair(t testing.TB) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
		_ = conns[i].SetDeadline(time.Now().Add(longest))
	}
	return conns[0], conns[1]
}

// FuzzReplies: whatever a server sends, the client stays within the buffers of its requests, and says that a call
// succeeded only when all of it came.
func FuzzReplies(f *testing.F) {
	chunk := func(flags, kind uint16, cookie uint64, payload ...any) []byte {
		p := bytesOf(payload...)
		return bytesOf(uint32(magicStructured), flags, kind, cookie, uint32(len(p)), p)
	}
	for _, seed := range [][]byte{
		nil, bytesOf(uint32(magicSimple), uint32(0), uint64(1), make([]byte, 100)), bytesOf(uint32(magicSimple), uint32(5), uint64(2)),
		chunk(1, replyData, 1, uint64(1000), make([]byte, 100)), bytesOf(chunk(0, replyHole, 1, uint64(1050), uint32(50)), chunk(0, replyData, 1, uint64(1000), make([]byte, 50)), chunk(1, replyNone, 1)),
		chunk(1, replyStatus, 3, uint32(7), uint32(1000), uint32(3), uint32(5), uint32(0)), chunk(1, replyError, 1, uint32(5), uint16(3), "bad"),
		chunk(1, replyErrorOffset, 1, uint32(28), uint16(0), uint64(1000)), chunk(1, replyData, 1, uint64(999), make([]byte, 100)), chunk(0, replyData, 1, uint64(1<<63), "x"),
		chunk(1, replyError, 1, uint32(5), uint16(300), "bad"), chunk(1, 99, 2), chunk(1, replyStatus, 3, uint32(7)),
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, p []byte, structured bool) {
		c := &Client{calls: map[uint64]*call{}, peer: peerTerms{size: 1 << 20, structured: structured, context: structured, contextID: 7}}
		c.idle.L = &c.mu
		room := make([]byte, 300)
		calls := []*call{
			{request: request{command: cmdRead, offset: 1000, length: 100, cookie: 1}, into: room[100:200:200]},
			{request: request{command: cmdWrite, offset: 1000, length: 100, cookie: 2}},
			{request: request{command: cmdBlockStatus, offset: 0, length: 4096, cookie: 3}},
			{request: request{command: cmdRead, offset: 0, length: 50, cookie: 4}, into: make([]byte, 50), abandoned: true},
		}
		for _, q := range calls {
			q.done = make(chan struct{})
			c.calls[q.cookie] = q
		}
		if err := c.readReplies(bufio.NewReader(bytes.NewReader(p))); err == nil {
			t.Fatal("no end")
		}
		for i, b := range room {
			if (i < 100 || i >= 200) && b != 0 {
				t.Fatal("written beside the buffer")
			}
		}
		if q := calls[0]; q.ended && q.err == nil && structured && q.got != 100 {
			t.Errorf("%d bytes are all", q.got)
		}
		if q := calls[2]; q.ended && q.err == nil && len(q.extents) == 0 {
			t.Error("no extents")
		}
	})
}
