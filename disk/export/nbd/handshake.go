package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"hayloft/cloud/fault"
)

// errAborted ends a negotiation that the client wanted to end.
var errAborted = errors.New("the client aborted the negotiation")

// negotiation is the server's side of "Fixed newstyle negotiation" on one connection.
type negotiation struct {
	in          *bufio.Reader
	out         *bufio.Writer
	names       []string // "" is always one of them
	description string
	terms       terms
	flags       uint16 // transmission flags, without NBD_FLAG_SEND_DF
	noZeroes    bool
	fixed       bool
	chosen      string // the export that the metadata context was set for
}

// run returns when the transmission phase begins. The terms are filled in then.
func (n *negotiation) run() error {
	var hello [18]byte
	binary.BigEndian.PutUint64(hello[:], magicServer)
	binary.BigEndian.PutUint64(hello[8:], magicOption)
	binary.BigEndian.PutUint16(hello[16:], handshakeFixed|handshakeNoZeroes)
	n.out.Write(hello[:])
	if err := n.out.Flush(); err != nil {
		return err
	}
	var word [4]byte
	if _, err := io.ReadFull(n.in, word[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(word[:])
	if flags&^(handshakeFixed|handshakeNoZeroes) != 0 {
		return fault.Errorf(fault.Invalid, "client flags %#x", flags)
	}
	n.fixed, n.noZeroes = flags&handshakeFixed != 0, flags&handshakeNoZeroes != 0
	for range maxOptions {
		done, err := n.option()
		if err == nil {
			err = n.out.Flush()
		}
		if done || err != nil {
			return err
		}
	}
	return fault.Errorf(fault.Invalid, "more than %d options", maxOptions)
}

// option reads and answers one option; done is the end of the negotiation.
func (n *negotiation) option() (done bool, err error) {
	var head [16]byte
	if _, err := io.ReadFull(n.in, head[:]); err != nil {
		return false, err
	}
	if m := binary.BigEndian.Uint64(head[:]); m != magicOption {
		return false, fault.Errorf(fault.Invalid, "option magic %#x", m)
	}
	option, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if length > maxOption {
		n.fail(option, repTooBig, "option data is longer than 64 KiB")
		return false, errors.Join(n.out.Flush(), fault.Errorf(fault.Invalid, "option %d with %d bytes", option, length))
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(n.in, data); err != nil {
		return false, err
	}
	if option == optExportName {
		return true, n.exportName(string(data))
	}
	if !n.fixed { // the only option of newstyle negotiation that is not fixed
		return false, fault.Errorf(fault.Invalid, "option %d without fixed newstyle", option)
	}
	switch option {
	case optAbort:
		n.reply(option, repAck, nil)
		return false, errors.Join(n.out.Flush(), errAborted)
	case optList:
		n.list(data)
	case optInfo, optGo:
		return n.info(option, data) && option == optGo, nil
	case optStructuredReply:
		if len(data) != 0 {
			n.fail(option, repInvalid, "structured reply has no data")
			break
		}
		n.terms.structured = true
		n.reply(option, repAck, nil)
	case optListMeta, optSetMeta:
		n.metaContext(option, data)
	default:
		n.fail(option, repUnsupported, "unknown option")
	}
	return false, nil
}

func (n *negotiation) reply(option, kind uint32, data []byte) {
	var head [20]byte
	binary.BigEndian.PutUint64(head[:], magicOptionReply)
	binary.BigEndian.PutUint32(head[8:], option)
	binary.BigEndian.PutUint32(head[12:], kind)
	binary.BigEndian.PutUint32(head[16:], uint32(len(data)))
	n.out.Write(head[:]) // an error is seen by Flush
	n.out.Write(data)
}

func (n *negotiation) fail(option, kind uint32, message string) {
	n.reply(option, kind, []byte(message))
}

func (n *negotiation) known(name string) bool { return name == "" || slices.Contains(n.names, name) }

func (n *negotiation) transmissionFlags() uint16 {
	if n.terms.structured {
		return n.flags | flagDF
	}
	return n.flags
}

// exportName is NBD_OPT_EXPORT_NAME, which has no way of answering with an error.
func (n *negotiation) exportName(name string) error {
	if !n.known(name) {
		return fault.Errorf(fault.NotFound, "export %q is not here", name)
	}
	n.settle(name)
	answer := make([]byte, 10, 10+124)
	binary.BigEndian.PutUint64(answer, uint64(n.terms.size))
	binary.BigEndian.PutUint16(answer[8:], n.transmissionFlags())
	if !n.noZeroes {
		answer = answer[:10+124]
	}
	n.out.Write(answer)
	return nil
}

// settle drops a metadata context that was negotiated for another export.
func (n *negotiation) settle(name string) {
	if n.chosen != name {
		n.terms.allocation = false
	}
}

func (n *negotiation) list(data []byte) {
	if len(data) != 0 {
		n.fail(optList, repInvalid, "list has no data")
		return
	}
	for _, name := range n.names {
		entry := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
		n.reply(optList, repServer, append(append(entry, name...), n.description...))
	}
	n.reply(optList, repAck, nil)
}

// cut takes a string with its length before it from data.
func cut(data []byte) (s string, rest []byte, ok bool) {
	if len(data) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(data)
	data = data[4:]
	if uint64(n) > uint64(len(data)) || n > maxString {
		return "", nil, false
	}
	return string(data[:n]), data[n:], true
}

// info is NBD_OPT_INFO and NBD_OPT_GO.
func (n *negotiation) info(option uint32, data []byte) bool {
	name, rest, ok := cut(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		n.fail(option, repInvalid, "lengths do not match")
		return false
	}
	if !n.known(name) {
		n.fail(option, repUnknown, fmt.Sprintf("export %q is not here", name))
		return false
	}
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(n.terms.size))
	export = binary.BigEndian.AppendUint16(export, n.transmissionFlags())
	n.reply(option, repInfo, export)
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		kind := binary.BigEndian.Uint16(rest)
		answer := binary.BigEndian.AppendUint16(nil, kind)
		switch kind {
		case infoName:
			n.reply(option, repInfo, append(answer, name...))
		case infoDescription:
			if n.description != "" {
				n.reply(option, repInfo, append(answer, n.description...))
			}
		case infoBlockSize:
			answer = binary.BigEndian.AppendUint32(answer, minimumBlock)
			answer = binary.BigEndian.AppendUint32(answer, preferredBlock)
			n.reply(option, repInfo, binary.BigEndian.AppendUint32(answer, maxPayload))
		}
	}
	n.reply(option, repAck, nil)
	if option == optGo {
		n.settle(name)
	}
	return true
}

// metaContext is NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
func (n *negotiation) metaContext(option uint32, data []byte) {
	set := option == optSetMeta
	if set {
		n.terms.allocation = false // "replaces all previously-set metadata contexts", also when it fails
	}
	if !n.terms.structured {
		n.fail(option, repInvalid, "structured replies come first")
		return
	}
	name, rest, ok := cut(data)
	if !ok || len(rest) < 4 {
		n.fail(option, repInvalid, "lengths do not match")
		return
	}
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	found := !set && count == 0
	for range count {
		var query string
		if query, rest, ok = cut(rest); !ok {
			break
		}
		found = found || query == contextAllocation || !set && query == "base:"
	}
	if !ok || len(rest) != 0 {
		n.fail(option, repInvalid, "lengths do not match")
		return
	}
	if !n.known(name) {
		n.fail(option, repUnknown, fmt.Sprintf("export %q is not here", name))
		return
	}
	if set {
		n.terms.allocation, n.chosen = found, name
	}
	if found {
		var id uint32
		if set {
			id = allocationID
		}
		n.reply(option, repMeta, append(binary.BigEndian.AppendUint32(nil, id), contextAllocation...))
	}
	n.reply(option, repAck, nil)
}

// allocationID is the number by which this server calls base:allocation.
const allocationID = 1
