package bridge

import (
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Offsets and values of the headers that the rules look at.
const (
	etherSource = 6
	etherType   = 12

	arpSenderMAC = 8
	arpSenderIP  = 14

	ip4Source = 12
	ip6Source = 8

	typeIP4  = 0x0800
	typeARP  = 0x0806
	typeRARP = 0x8035 // how QEMU announces a machine's place to switches
	typeIP6  = 0x86dd

	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	redirect              = 137
	listenerReport        = 143 // MLDv2: joining the groups that neighbour discovery needs
)

// portRules is a filtered port's chain: it lets pass what is known to be the port's own, and ends with a drop, so
// that a frame too short or too odd to be judged does not pass. In particular VLAN-tagged frames do not.
func portRules(id identity) [][]expr.Any {
	if !id.filter {
		return [][]expr.Any{{verdict(expr.VerdictAccept)}}
	}
	chain := [][]expr.Any{
		rule(expr.VerdictDrop, link(etherSource, expr.CmpOpNeq, id.mac)),
		rule(expr.VerdictAccept, ether(typeRARP)),
	}
	anyAddress := len(id.ip4) == 0 && len(id.ip6) == 0
	chain = append(chain, arpRules(id, anyAddress)...)
	chain = append(chain, ip4Rules(id, anyAddress)...)
	chain = append(chain, ip6Rules(id, anyAddress)...)
	return append(chain, []expr.Any{verdict(expr.VerdictDrop)})
}

// arpRules: the sender is the port's MAC and one of its addresses, or none yet (a probe, RFC 5227).
func arpRules(id identity, anyAddress bool) [][]expr.Any {
	ethernetIP4 := []byte{0, 1, 0x08, 0, 6, 4}
	header := slices.Concat(ether(typeARP), inner(0, ethernetIP4), inner(arpSenderMAC, id.mac))
	if anyAddress {
		return [][]expr.Any{rule(expr.VerdictAccept, header)}
	}
	var chain [][]expr.Any
	for _, ip := range id.ip4 {
		chain = append(chain, rule(expr.VerdictAccept, header, inner(arpSenderIP, ip)))
	}
	if len(id.ip4) > 0 {
		chain = append(chain, rule(expr.VerdictAccept, header, inner(arpSenderIP, make([]byte, 4))))
	}
	return chain
}

// ip4Rules: own addresses, and a DHCP client that has none yet; no DHCP server.
func ip4Rules(id identity, anyAddress bool) [][]expr.Any {
	chain := [][]expr.Any{rule(expr.VerdictDrop, ether(typeIP4), ports(67, 68))}
	if anyAddress {
		return append(chain, rule(expr.VerdictAccept, ether(typeIP4)))
	}
	for _, ip := range id.ip4 {
		chain = append(chain, rule(expr.VerdictAccept, ether(typeIP4), inner(ip4Source, ip)))
	}
	if len(id.ip4) > 0 {
		chain = append(chain, rule(expr.VerdictAccept, ether(typeIP4), inner(ip4Source, make([]byte, 4)), ports(68, 67)))
	}
	return chain
}

// ip6Rules: given addresses and the link-local one of the MAC; without a given one neighbour discovery only. No
// router advertisements, redirects and DHCPv6 servers; advertised neighbours are the port's own addresses.
func ip6Rules(id identity, anyAddress bool) [][]expr.Any {
	chain := [][]expr.Any{
		rule(expr.VerdictDrop, icmp6(routerAdvertisement)),
		rule(expr.VerdictDrop, icmp6(redirect)),
		rule(expr.VerdictDrop, ether(typeIP6), ports(547, 546)),
	}
	if anyAddress {
		return append(chain, rule(expr.VerdictAccept, ether(typeIP6)))
	}
	own := append([][]byte{linkLocal(id.mac)}, id.ip6...)
	foreign := icmp6(neighborAdvertisement)
	foreign = append(foreign, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 8, Len: 16})
	for _, target := range own {
		foreign = append(foreign, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: target})
	}
	chain = append(chain, rule(expr.VerdictDrop, foreign))
	if len(id.ip6) > 0 {
		for _, source := range own {
			chain = append(chain, rule(expr.VerdictAccept, from6(source)))
		}
	} else {
		for _, kind := range []byte{routerSolicitation, neighborSolicitation, neighborAdvertisement, listenerReport} {
			chain = append(chain, rule(expr.VerdictAccept, from6(own[0]), icmp6(kind)))
		}
	}
	for _, kind := range []byte{neighborSolicitation, listenerReport} {
		chain = append(chain, rule(expr.VerdictAccept, from6(make([]byte, 16)), icmp6(kind)))
	}
	return chain
}

// linkLocal is the address that a machine derives from its MAC (modified EUI-64, RFC 4291 appendix A).
func linkLocal(mac []byte) []byte {
	ip := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	return netip.AddrFrom16(ip).AsSlice()
}

func rule(v expr.VerdictKind, matches ...[]expr.Any) []expr.Any {
	return append(slices.Concat(matches...), verdict(v))
}

func verdict(v expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: v} }

func load(base expr.PayloadBase, offset uint32, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(value))},
		&expr.Cmp{Op: op, Register: 1, Data: value},
	}
}

func link(offset uint32, op expr.CmpOp, value []byte) []expr.Any {
	return load(expr.PayloadBaseLLHeader, offset, op, value)
}

func inner(offset uint32, value []byte) []expr.Any {
	return load(expr.PayloadBaseNetworkHeader, offset, expr.CmpOpEq, value)
}

func transport(offset uint32, value []byte) []expr.Any {
	return load(expr.PayloadBaseTransportHeader, offset, expr.CmpOpEq, value)
}

func ether(kind uint16) []expr.Any {
	return link(etherType, expr.CmpOpEq, []byte{byte(kind >> 8), byte(kind)})
}

func from6(source []byte) []expr.Any {
	return slices.Concat(ether(typeIP6), inner(ip6Source, source))
}

func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

func ports(source, destination uint16) []expr.Any {
	return slices.Concat(protocol(unix.IPPROTO_UDP),
		transport(0, []byte{byte(source >> 8), byte(source), byte(destination >> 8), byte(destination)}))
}

func icmp6(kind byte) []expr.Any {
	return slices.Concat(ether(typeIP6), protocol(unix.IPPROTO_ICMPV6), transport(0, []byte{kind}))
}
