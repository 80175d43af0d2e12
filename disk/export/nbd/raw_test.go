package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// raw speaks to a server byte by byte.
type raw struct {
	t testing.TB
	net.Conn
}

func dialRaw(t testing.TB, path string) *raw {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(longest))
	return &raw{t, conn}
}

func (r *raw) read(n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		r.t.Fatalf("reading %d bytes: %v", n, err)
	}
	return p
}

func (r *raw) write(parts ...any) {
	r.t.Helper()
	if _, err := r.Write(bytesOf(parts...)); err != nil {
		r.t.Fatal(err)
	}
}

// bytesOf puts numbers of fixed size and strings one after the other.
func bytesOf(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case []byte:
			b.Write(p)
		default:
			if err := binary.Write(&b, binary.BigEndian, p); err != nil {
				panic(err)
			}
		}
	}
	return b.Bytes()
}

// hello does the first exchange.
func (r *raw) hello(flags uint32) {
	r.t.Helper()
	if got, want := r.read(18), bytesOf(uint64(magicServer), uint64(magicOption), uint16(3)); !bytes.Equal(got, want) {
		r.t.Fatalf("hello %x", got)
	}
	r.write(flags)
}

type optionReply struct {
	kind uint32
	data string
}

// option sends an option and reads replies to the last one.
func (r *raw) option(option uint32, data ...any) (all []optionReply) {
	r.t.Helper()
	p := bytesOf(data...)
	r.write(uint64(magicOption), option, uint32(len(p)), p)
	for {
		head := r.read(20)
		if m, o := binary.BigEndian.Uint64(head), binary.BigEndian.Uint32(head[8:]); m != magicOptionReply || o != option {
			r.t.Fatalf("reply head %x", head)
		}
		reply := optionReply{binary.BigEndian.Uint32(head[12:]), string(r.read(int(binary.BigEndian.Uint32(head[16:]))))}
		if all = append(all, reply); reply.kind == repAck || reply.kind&repError != 0 {
			return all
		}
	}
}

func text(s string) []byte { return bytesOf(uint32(len(s)), s) }

// enter goes to the transmission phase of the default export.
func enter(t testing.TB, path string, structured bool) *raw {
	t.Helper()
	r := dialRaw(t, path)
	r.hello(3)
	if structured {
		r.option(optStructuredReply)
		r.option(optSetMeta, text(""), uint32(1), text(contextAllocation))
	}
	if got := r.option(optGo, text(""), uint16(0)); got[len(got)-1].kind != repAck {
		t.Fatalf("go: %x", got)
	}
	return r
}

func (r *raw) request(command, flags uint16, cookie, offset uint64, length uint32, payload ...[]byte) {
	r.t.Helper()
	r.write(uint32(magicRequest), flags, command, cookie, offset, length, bytes.Join(payload, nil))
}

// message is a simple reply or a chunk.
type message struct {
	simple bool
	flags  uint16
	kind   uint16
	err    errno
	cookie uint64
	data   []byte // of a chunk
}

func (r *raw) message() message {
	r.t.Helper()
	head := r.read(simpleSize)
	m := message{cookie: binary.BigEndian.Uint64(head[8:])}
	switch binary.BigEndian.Uint32(head) {
	case magicSimple:
		m.simple, m.err = true, errno(binary.BigEndian.Uint32(head[4:]))
	case magicStructured:
		m.flags, m.kind = binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
		m.data = r.read(int(binary.BigEndian.Uint32(r.read(4))))
		if m.kind&replyErrorBit != 0 {
			m.err = errno(binary.BigEndian.Uint32(m.data))
		}
	default:
		r.t.Fatalf("reply %x", head)
	}
	return m
}

// content reads a structured reply to NBD_CMD_READ: where each chunk goes.
func (r *raw) content(cookie, offset uint64, length int) (p []byte, chunks int) {
	r.t.Helper()
	p = make([]byte, length)
	for {
		m := r.message()
		if m.simple || m.cookie != cookie || m.kind != replyData && m.kind != replyNone {
			r.t.Fatalf("message %+v", m)
		}
		if m.kind == replyData {
			chunks++
			copy(p[binary.BigEndian.Uint64(m.data)-offset:], m.data[8:])
		}
		if m.flags&replyDone != 0 {
			return p, chunks
		}
	}
}

// ends waits for the end of the connection.
func (r *raw) ends() {
	r.t.Helper()
	rest, err := io.ReadAll(r)
	var n net.Error
	if len(rest) > 0 || errors.As(err, &n) && n.Timeout() {
		r.t.Fatalf("the connection does not end: %x, %v", rest, err)
	}
}
