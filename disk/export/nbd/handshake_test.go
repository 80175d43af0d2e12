package nbd

import (
	"bytes"
	"strings"
	"testing"

	"hayloft/cloud/fault"
)

const writableFlags = flagHasFlags | flagFlush | flagFUA | flagMultiConn | flagCache | flagTrim | flagWriteZeroes | flagFastZero

func TestOptions(t *testing.T) {
	s := serve(t, newMemory(12345), Config{Names: []string{"disk", "other"}, Description: "words"})
	exported := func(flags uint16) optionReply {
		return optionReply{repInfo, string(bytesOf(uint16(infoExport), uint64(12345), flags))}
	}
	ack := optionReply{kind: repAck}
	structured := func(r *raw) { r.option(optStructuredReply) }
	for _, tt := range []struct {
		name   string
		before func(*raw)
		option uint32
		data   []byte
		want   []optionReply // data of errors is not compared
	}{
		{"list", nil, optList, nil, []optionReply{{repServer, string(bytesOf(text("disk"), "words"))}, {repServer, string(bytesOf(text("other"), "words"))}, ack}},
		{"list with data", nil, optList, []byte("x"), []optionReply{{kind: repInvalid}}},
		{"starttls", nil, 5, nil, []optionReply{{kind: repUnsupported}}},
		{"extended headers", nil, 11, nil, []optionReply{{kind: repUnsupported}}},
		{"unknown with data", nil, 4711, []byte("data"), []optionReply{{kind: repUnsupported}}},
		{"structured", nil, optStructuredReply, nil, []optionReply{ack}},
		{"structured with data", nil, optStructuredReply, []byte{1}, []optionReply{{kind: repInvalid}}},
		{"abort", nil, optAbort, nil, []optionReply{ack}},
		{"info", nil, optInfo, bytesOf(text("disk"), uint16(0)), []optionReply{exported(writableFlags), ack}},
		{"info of the default", nil, optInfo, bytesOf(text(""), uint16(0)), []optionReply{exported(writableFlags), ack}},
		{"info with all", structured, optInfo, bytesOf(text("other"), uint16(4), []uint16{infoName, infoDescription, infoBlockSize, 99}), []optionReply{
			exported(writableFlags | flagDF), {repInfo, string(bytesOf(uint16(infoName), "other"))}, {repInfo, string(bytesOf(uint16(infoDescription), "words"))},
			{repInfo, string(bytesOf(uint16(infoBlockSize), uint32(1), uint32(4096), uint32(32<<20)))}, ack}},
		{"info of nothing", nil, optInfo, bytesOf(text("nothing"), uint16(0)), []optionReply{{kind: repUnknown}}},
		{"info without count", nil, optInfo, text("disk"), []optionReply{{kind: repInvalid}}},
		{"info with few", nil, optInfo, bytesOf(text("disk"), uint16(2), uint16(1)), []optionReply{{kind: repInvalid}}},
		{"info with a lie", nil, optInfo, bytesOf(uint32(1<<31), "disk"), []optionReply{{kind: repInvalid}}},
		{"info of a long name", nil, optInfo, bytesOf(text(strings.Repeat("x", 4097)), uint16(0)), []optionReply{{kind: repInvalid}}},
		{"go", nil, optGo, bytesOf(text("disk"), uint16(0)), []optionReply{exported(writableFlags), ack}},
		{"list contexts too early", nil, optListMeta, bytesOf(text("disk"), uint32(0)), []optionReply{{kind: repInvalid}}},
		{"list contexts", structured, optListMeta, bytesOf(text("disk"), uint32(0)), []optionReply{{repMeta, string(bytesOf(uint32(0), contextAllocation))}, ack}},
		{"list base contexts", structured, optListMeta, bytesOf(text(""), uint32(1), text("base:")), []optionReply{{repMeta, string(bytesOf(uint32(0), contextAllocation))}, ack}},
		{"list other contexts", structured, optListMeta, bytesOf(text(""), uint32(1), text("qemu:")), []optionReply{ack}},
		{"set context", structured, optSetMeta, bytesOf(text("disk"), uint32(2), text("x:y"), text(contextAllocation)), []optionReply{{repMeta, string(bytesOf(uint32(allocationID), contextAllocation))}, ack}},
		{"set a wildcard", structured, optSetMeta, bytesOf(text("disk"), uint32(1), text("base:")), []optionReply{ack}},
		{"set none", structured, optSetMeta, bytesOf(text("disk"), uint32(0)), []optionReply{ack}},
		{"set of nothing", structured, optSetMeta, bytesOf(text("nothing"), uint32(0)), []optionReply{{kind: repUnknown}}},
		{"set with a lie", structured, optSetMeta, bytesOf(text("disk"), uint32(1<<30), text("x")), []optionReply{{kind: repInvalid}}},
		{"set with a tail", structured, optSetMeta, bytesOf(text("disk"), uint32(0), "x"), []optionReply{{kind: repInvalid}}},
		{"too long", nil, optList, make([]byte, maxOption+1), []optionReply{{kind: repTooBig}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := dialRaw(t, s.path)
			r.hello(3)
			if tt.before != nil {
				tt.before(r)
			}
			got := r.option(tt.option, tt.data)
			for i := range got {
				if got[i].kind&repError != 0 {
					if got[i].data == "" {
						t.Error("an error without a text")
					}
					got[i].data = ""
				}
			}
			if len(got) != len(tt.want) {
				t.Fatalf("%x\nwant %x", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("reply %d: %x\nwant %x", i, got[i], tt.want[i])
				}
			}
			switch {
			case tt.option == optAbort, tt.want[0].kind == repTooBig:
				r.ends()
			case tt.option == optGo:
				r.request(cmdRead, 0, 1, 0, 1)
				if m := r.message(); m.err != 0 {
					t.Errorf("%+v", m)
				}
			default: // the negotiation goes on
				if got := r.option(optStructuredReply); got[0].kind != repAck {
					t.Errorf("afterwards: %x", got)
				}
			}
		})
	}
}

func TestExportName(t *testing.T) {
	d := newMemory(100)
	d.readOnly = true
	s := serve(t, d, Config{Names: []string{"disk"}})
	answer := bytesOf(uint64(100), uint16(flagHasFlags|flagReadOnly|flagFlush|flagFUA|flagMultiConn|flagCache))
	for flags, want := range map[uint32][]byte{0: append(answer, make([]byte, 124)...), 1: append(answer, make([]byte, 124)...), 3: answer, 2: answer} {
		r := dialRaw(t, s.path)
		r.hello(flags)
		r.write(uint64(magicOption), uint32(optExportName), uint32(4), "disk")
		if got := r.read(len(want)); !bytes.Equal(got, want) {
			t.Errorf("flags %d: %x", flags, got)
		}
		r.request(cmdRead, 0, 7, 0, 10)
		if m := r.message(); !m.simple || m.cookie != 7 {
			t.Errorf("flags %d: %+v", flags, m)
		}
	}
	r := dialRaw(t, s.path)
	r.hello(3)
	r.write(uint64(magicOption), uint32(optExportName), uint32(7), "nothing")
	r.ends()
}

// TestBadNegotiation: what is not understood ends the connection.
func TestBadNegotiation(t *testing.T) {
	s := serve(t, newMemory(100), Config{})
	for name, say := range map[string]func(*raw){
		"client flags": func(r *raw) { r.hello(4) },
		"magic":        func(r *raw) { r.hello(3); r.write(uint64(1), uint64(2)) },
		"not fixed":    func(r *raw) { r.hello(0); r.write(uint64(magicOption), uint32(optGo), uint32(0)) },
		"endless":      func(r *raw) { r.hello(3); r.endless() },
		"cut in option": func(r *raw) {
			r.hello(3)
			r.write(uint64(magicOption))
			r.Conn.(interface{ CloseWrite() error }).CloseWrite()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := dialRaw(t, s.path)
			say(r)
			r.ends()
		})
	}
}

// endless sends options for as long as the server takes them.
func (r *raw) endless() {
	for range maxOptions {
		r.option(4711)
	}
}

// TestContextOfAnotherExport: a context that was negotiated for one export is not there for another.
func TestContextOfAnotherExport(t *testing.T) {
	s := serve(t, newMemory(100), Config{Names: []string{"disk", "other"}})
	for name, want := range map[string]errno{"disk": 0, "other": errInvalid} {
		r := dialRaw(t, s.path)
		r.hello(3)
		r.option(optStructuredReply)
		r.option(optSetMeta, text("disk"), uint32(1), text(contextAllocation))
		r.option(optGo, text(name), uint16(0))
		r.request(cmdBlockStatus, 0, 1, 0, 100)
		if m := r.message(); m.err != want {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func TestNamesTooLong(t *testing.T) {
	if _, err := NewServer(Config{Names: []string{strings.Repeat("x", 4097)}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}
