package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

// TestRequests: each command and each way of asking wrongly, with simple and structured replies, by a Device that is
// Quick, half of it misses, and one that is not.
func TestRequests(t *testing.T) {
	const size = 1 << 20
	for _, tt := range []struct {
		name    string
		command uint16
		flags   uint16
		offset  uint64
		length  uint32
		want    errno
	}{
		{"read", cmdRead, 0, 5, 1000, 0},
		{"read of a miss", cmdRead, 0, size - 10, 10, 0},
		{"read over the border", cmdRead, 0, size/2 - 10, 20, 0},
		{"read of all", cmdRead, 0, 0, size, 0},
		{"read with fua", cmdRead, cmdFUA, 0, 10, 0},
		{"read of nothing", cmdRead, 0, 0, 0, 0},
		{"read at the end", cmdRead, 0, size, 0, 0},
		{"read beyond", cmdRead, 0, size - 1, 2, errInvalid},
		{"read far beyond", cmdRead, 0, 1<<64 - 1, 2, errInvalid},
		{"read of too much", cmdRead, 0, 0, maxPayload + 1, errInvalid},
		{"read with a foreign flag", cmdRead, cmdNoHole, 0, 1, errInvalid},
		{"read with an unknown flag", cmdRead, 1 << 9, 0, 1, errInvalid},
		{"write", cmdWrite, 0, 3, 1000, 0},
		{"write of a miss", cmdWrite, 0, size - 1000, 1000, 0},
		{"write with fua", cmdWrite, cmdFUA, 0, 1000, 0},
		{"write of all", cmdWrite, 0, 0, size, 0},
		{"write of all with fua", cmdWrite, cmdFUA, 0, size, 0},
		{"write of nothing", cmdWrite, 0, 0, 0, 0},
		{"write beyond", cmdWrite, 0, size - 1, 1000, errNoSpace},
		{"long write beyond", cmdWrite, 0, 1, size, errNoSpace},
		{"write with a foreign flag", cmdWrite, cmdDF, 0, 1000, errInvalid},
		{"flush", cmdFlush, 0, 0, 0, 0},
		{"flush with fua", cmdFlush, cmdFUA, 0, 0, 0},
		{"flush of a range", cmdFlush, 0, 0, 10, errInvalid},
		{"trim", cmdTrim, 0, 10, 100, 0},
		{"trim with fua", cmdTrim, cmdFUA, 10, 100, 0},
		{"trim of nothing", cmdTrim, 0, 10, 0, 0},
		{"trim beyond", cmdTrim, 0, 10, size, errInvalid},
		{"cache", cmdCache, 0, 10, 100, 0},
		{"cache of nothing", cmdCache, 0, 10, 0, 0},
		{"cache beyond", cmdCache, 0, 10, size, errInvalid},
		{"zeroes", cmdWriteZeroes, 0, 10, 100, 0},
		{"zeroes with all flags", cmdWriteZeroes, cmdFUA | cmdNoHole | cmdFastZero, 10, 100, 0},
		{"zeroes of nothing", cmdWriteZeroes, 0, 10, 0, 0},
		{"zeroes beyond", cmdWriteZeroes, 0, 10, size, errNoSpace},
		{"zeroes of nearly 4 GiB", cmdWriteZeroes, 0, 10, 1<<32 - 1, errNoSpace},
		{"status with one", cmdBlockStatus, cmdReqOne, 0, size, 0},
		{"status of nothing", cmdBlockStatus, 0, 0, 0, errInvalid},
		{"status beyond", cmdBlockStatus, 0, 1, size, errInvalid},
		{"resize", 8, 0, 0, 0, errInvalid},
		{"unknown", 4711, 0, 0, 0, errInvalid},
	} {
		for _, structured := range []bool{true, false} {
			for _, quick := range []bool{true, false} {
				name := tt.name + map[bool]string{true: ", structured", false: ", simple"}[structured] + map[bool]string{true: ", quick", false: ""}[quick]
				t.Run(name, func(t *testing.T) {
					m := newMemory(size)
					copy(m.data, pattern(size, 1))
					var device export.Device = m
					if quick {
						device = quickMemory{memory: m, missFrom: size / 2}
					}
					r := enter(t, serve(t, device, Config{}).path, structured)
					var payload []byte
					if tt.command == cmdWrite {
						payload = pattern(int(tt.length), 2)
					}
					want := tt.want
					if tt.command == cmdBlockStatus && !structured {
						want = errInvalid
					}
					before, _, _ := m.seen()
					r.request(tt.command, tt.flags, 0xc00c1e, tt.offset, tt.length, payload)
					switch {
					case want != 0:
						r.refused(structured, want)
						if after, _, _ := m.seen(); !bytes.Equal(after, before) {
							t.Error("something was changed")
						}
					case tt.command == cmdRead:
						got := r.simpleOrContent(structured, tt.offset, int(tt.length))
						if !bytes.Equal(got, before[tt.offset:][:tt.length]) {
							t.Error("other bytes")
						}
					default:
						if got := r.message(); got.err != 0 || got.cookie != 0xc00c1e {
							t.Fatalf("%+v", got)
						}
					}
					checkChange(t, m, tt.command, tt.flags, tt.offset, tt.length, payload, want)
					r.request(cmdRead, 0, 9, 0, 1) // the connection goes on
					if m := r.message(); m.cookie != 9 || m.err != 0 {
						t.Errorf("afterwards: %+v", m)
					}
				})
			}
		}
	}
}

func checkChange(t *testing.T, m *memory, command, flags uint16, offset uint64, length uint32, payload []byte, want errno) {
	t.Helper()
	if want != 0 {
		return
	}
	data, zeroed, flushes := m.seen()
	switch command {
	case cmdWrite:
		if !bytes.Equal(data[offset:][:length], payload) {
			t.Error("other bytes were written")
		}
	case cmdFlush:
		if flushes != 1 {
			t.Errorf("%d flushes", flushes)
		}
	case cmdTrim, cmdWriteZeroes:
		zeros := export.ZeroFlags{Trim: command == cmdTrim, NoHole: flags&cmdNoHole != 0, Fast: flags&cmdFastZero != 0, FUA: flags&cmdFUA != 0}
		if length > 0 && (len(zeroed) != 1 || zeroed[0] != zeros) {
			t.Errorf("zeroed %+v, want %+v", zeroed, zeros)
		}
		if !bytes.Equal(data[offset:][:length], make([]byte, length)) {
			t.Error("not zero")
		}
	}
}

func (r *raw) refused(structured bool, want errno) {
	r.t.Helper()
	m := r.message()
	if m.simple == structured || m.err != want || m.cookie != 0xc00c1e {
		r.t.Fatalf("%+v, want error %d", m, want)
	}
	if structured && (m.kind != replyError || m.flags != replyDone || len(m.data) <= 6 || int(binary.BigEndian.Uint16(m.data[4:])) != len(m.data)-6) {
		r.t.Errorf("%+v", m)
	}
}

func (r *raw) simpleOrContent(structured bool, offset uint64, length int) []byte {
	r.t.Helper()
	if structured {
		p, _ := r.content(0xc00c1e, offset, length)
		return p
	}
	if m := r.message(); !m.simple || m.err != 0 || m.cookie != 0xc00c1e {
		r.t.Fatalf("%+v", m)
	}
	return r.read(length)
}

func TestReadOnly(t *testing.T) {
	m := newMemory(8192)
	m.readOnly = true
	r := enter(t, serve(t, quickMemory{memory: m, missFrom: 8192}, Config{}).path, true)
	for _, command := range []uint16{cmdWrite, cmdTrim, cmdWriteZeroes} {
		var payload []byte
		if command == cmdWrite {
			payload = pattern(4096, 1)
		}
		r.request(command, 0, 0xc00c1e, 0, 4096, payload)
		r.refused(true, errPermission)
	}
	r.request(cmdFlush, 0, 1, 0, 0)
	if got := r.message(); got.err != 0 {
		t.Errorf("%+v", got)
	}
	if data, _, _ := m.seen(); !bytes.Equal(data, make([]byte, 8192)) {
		t.Error("it was changed")
	}
}

// TestFatal: what the server cannot go on after.
func TestFatal(t *testing.T) {
	s := serve(t, newMemory(100), Config{})
	t.Run("magic", func(t *testing.T) {
		r := enter(t, s.path, true)
		r.write(make([]byte, requestSize))
		r.ends()
	})
	t.Run("write of too much", func(t *testing.T) {
		r := enter(t, s.path, true)
		r.request(cmdWrite, 0, 0xc00c1e, 0, maxPayload+1)
		r.refused(true, errInvalid)
		r.ends()
	})
	t.Run("disconnect", func(t *testing.T) {
		r := enter(t, s.path, true)
		r.request(cmdDisconnect, 0, 0, 0, 0)
		r.ends()
	})
	t.Run("cut in a payload", func(t *testing.T) {
		r := enter(t, s.path, true)
		r.request(cmdWrite, 0, 0, 0, 100, []byte("few"))
		r.Conn.(interface{ CloseWrite() error }).CloseWrite()
		r.ends()
	})
	r := enter(t, s.path, true) // others go on
	r.request(cmdRead, 0, 1, 0, 100)
	r.content(1, 0, 100)
}

func TestErrors(t *testing.T) {
	for class, want := range map[fault.Class]errno{fault.Permission: errPermission, fault.OutOfSpace: errNoSpace, fault.Invalid: errInvalid,
		fault.Unsupported: errNotSup, fault.WrongState: errShutdown, fault.Unavailable: errIO, fault.Corrupt: errIO, fault.Internal: errIO} {
		t.Run(class.String(), func(t *testing.T) {
			m := newMemory(1 << 20)
			fails := fault.Errorf(class, "%s", strings.Repeat("because ", 100))
			m.when(func(context.Context, string, int64) error { return fails })
			for _, device := range []export.Device{m, quickMemory{memory: m, err: fails}} {
				for _, structured := range []bool{true, false} {
					r := enter(t, serve(t, device, Config{}).path, structured)
					for _, command := range []uint16{cmdRead, cmdWrite, cmdFlush, cmdTrim, cmdCache, cmdWriteZeroes, cmdBlockStatus} {
						if command == cmdBlockStatus && !structured || command == cmdTrim && class == fault.Unsupported {
							continue
						}
						length := uint32(1 << 20)
						if command == cmdFlush {
							length = 0
						}
						var payload []byte
						if command == cmdWrite {
							payload = make([]byte, length)
						}
						r.request(command, 0, 0xc00c1e, 0, length, payload)
						r.refused(structured, want)
					}
				}
			}
		})
	}
}

// TestErrorInTheMiddle: a read that fails after its first chunks.
func TestErrorInTheMiddle(t *testing.T) {
	m := newMemory(1 << 20)
	m.when(func(_ context.Context, op string, offset int64) error {
		if op == "read" && offset >= 512<<10 {
			return fault.Errorf(fault.Corrupt, "half")
		}
		return nil
	})
	s := serve(t, m, Config{})
	r := enter(t, s.path, true)
	r.request(cmdRead, 0, 1, 0, 1<<20)
	for {
		got := r.message()
		if got.kind == replyData && got.flags == 0 {
			continue
		}
		if got.kind != replyError || got.err != errIO || got.flags != replyDone {
			t.Fatalf("%+v", got)
		}
		break
	}
	r = enter(t, s.path, false) // the head of a simple reply promised bytes that do not come
	r.request(cmdRead, 0, 1, 0, 1<<20)
	if got := r.message(); got.err != 0 {
		t.Fatalf("%+v", got)
	}
	r.read(512 << 10)
	r.ends()
}

func TestUnfragmented(t *testing.T) {
	m := newMemory(1 << 20)
	copy(m.data, pattern(1<<20, 3))
	for _, device := range []export.Device{m, quickMemory{memory: m, missFrom: 1 << 20}} {
		r := enter(t, serve(t, device, Config{}).path, true)
		for _, length := range []int{1, 64 << 10, maxUnfragmented} {
			r.request(cmdRead, cmdDF, 1, 100, uint32(length))
			if p, chunks := r.content(1, 100, length); chunks != 1 || !bytes.Equal(p, m.data[100:][:length]) {
				t.Errorf("%d bytes in %d chunks", length, chunks)
			}
		}
		r.request(cmdRead, cmdDF, 0xc00c1e, 0, maxUnfragmented+1)
		r.refused(true, errOverflow)
	}
}

func TestBlockStatus(t *testing.T) {
	m := newMemory(100 << 10)
	m.extents = []export.Extent{{Offset: 0, Length: 4096}, {Offset: 4096, Length: 4096}, {Offset: 8192, Length: 1000, Hole: true, Zero: true},
		{Offset: 9192, Length: 1000, Zero: true}, {Offset: 10192, Length: 100<<10 - 10192, Hole: true}}
	r := enter(t, serve(t, m, Config{}).path, true)
	for _, tt := range []struct {
		flags  uint16
		offset uint64
		length uint32
		want   []uint32
	}{
		{0, 0, 100 << 10, []uint32{8192, 0, 1000, 3, 1000, 2, 100<<10 - 10192, 1}},
		{cmdReqOne, 0, 100 << 10, []uint32{8192, 0}},
		{0, 8000, 500, []uint32{192, 0, 308, 3}},
		{cmdReqOne, 9192, 1, []uint32{1, 2}},
	} {
		r.request(cmdBlockStatus, tt.flags, 5, tt.offset, tt.length)
		got := r.message()
		if want := bytesOf(uint32(allocationID), tt.want); got.kind != replyStatus || got.flags != replyDone || !bytes.Equal(got.data, want) {
			t.Errorf("%d at %d: %+v\nwant %x", tt.length, tt.offset, got, want)
		}
	}
}

// TestManyExtents: the reply is bounded, and describes the beginning of the range.
func TestManyExtents(t *testing.T) {
	m := newMemory(20000)
	for i := range int64(20000) {
		m.extents = append(m.extents, export.Extent{Offset: i, Length: 1, Zero: i%2 == 0})
	}
	r := enter(t, serve(t, m, Config{}).path, true)
	r.request(cmdBlockStatus, 0, 5, 0, 20000)
	if got := r.message(); len(got.data) != 4+8*maxDescriptors {
		t.Errorf("%d bytes, error %d", len(got.data), got.err)
	}
}

func TestStatusCounts(t *testing.T) {
	s := serve(t, quickMemory{memory: newMemory(1 << 20), missFrom: 1 << 19}, Config{Connections: 1})
	r := enter(t, s.path, true)
	r.request(cmdRead, 0, 1, 0, 1<<20)
	r.content(1, 0, 1<<20)
	r.request(cmdWrite, 0, 2, 0, 4096, make([]byte, 4096))
	r.message()
	r.request(cmdWrite, 0, 2, 1<<19, 4096, make([]byte, 4096))
	r.message()
	wait(t, func() bool { return s.Status() == Status{Connections: 1, Read: 1 << 20, Written: 8192} })
	dialRaw(t, s.path).ends() // one connection is allowed
}
