// Package address does the arithmetic of virtual networks' address ranges (OpenNebula's AR): which MAC and IP
// addresses the index n of a range has, which index an address has, and which index is the next free one. Pure:
// who holds what is stored elsewhere.
package address

import (
	"encoding/binary"
	"net"
	"net/netip"

	"hayloft/cloud/fault"
)

// Type says which addresses the indices of a range have besides a MAC.
type Type string

// The types, with OpenNebula's names. IP6 addresses follow from the MAC (SLAAC), the STATIC ones count up.
const (
	IP4        Type = "IP4"
	IP6        Type = "IP6"
	IP6Static  Type = "IP6_STATIC"
	Dual       Type = "IP4_6"
	DualStatic Type = "IP4_6_STATIC"
	Ether      Type = "ETHER"
)

// MaxSize is the most indices that a range may have.
const MaxSize = 1 << 24

const (
	slaacBits    = 64 // of a prefix under which addresses follow from the MAC
	firstMACByte = 2  // the four bytes from here on count up
)

// Has4 tells whether the type has IPv4 addresses.
func (t Type) Has4() bool { return t == IP4 || t == Dual || t == DualStatic }

// HasSLAAC tells whether the type has IPv6 addresses made from the MAC.
func (t Type) HasSLAAC() bool { return t == IP6 || t == Dual }

// HasStatic6 tells whether the type has IPv6 addresses that count up.
func (t Type) HasStatic6() bool { return t == IP6Static || t == DualStatic }

// Range is Size consecutive indices, from 0. What its type does not have is the zero value.
type Range struct {
	ID     int
	Type   Type
	Size   int
	MAC    net.HardwareAddr // of index 0; its last four bytes count up
	IP     netip.Addr       // IPv4 of index 0
	IP6    netip.Addr       // static IPv6 of index 0
	Prefix int              // length of the static IPv6 prefix, in bits
	Global netip.Addr       // /64 prefix of global IPv6 addresses; zero for none
	ULA    netip.Addr       // /64 prefix of unique local IPv6 addresses; zero for none
}

// Addresses are those of one index. What the range's type does not have is the zero value.
type Addresses struct {
	MAC    net.HardwareAddr
	IP     netip.Addr
	IP6    netip.Addr // static
	Global netip.Addr
	ULA    netip.Addr
	Link   netip.Addr // link-local, with SLAAC types
}

// Nth gives the addresses of an index; an index outside of the range is fault.Invalid.
func (r Range) Nth(index int) (Addresses, error) {
	if index < 0 || index >= r.Size {
		return Addresses{}, fault.Errorf(fault.Invalid, "AR %d: index %d is not within 0 and %d", r.ID, index, r.Size-1)
	}
	a := Addresses{MAC: addMAC(r.MAC, index)}
	if r.Type.Has4() {
		a.IP = add4(r.IP, index)
	}
	if r.Type.HasStatic6() {
		a.IP6 = add6(r.IP6, index)
	}
	if r.Type.HasSLAAC() {
		a.Link = slaac(netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80}), a.MAC)
		if r.Global.IsValid() {
			a.Global = slaac(r.Global, a.MAC)
		}
		if r.ULA.IsValid() {
			a.ULA = slaac(r.ULA, a.MAC)
		}
	}
	return a, nil
}

// Last gives the addresses of the last index.
func (r Range) Last() Addresses {
	a, err := r.Nth(r.Size - 1)
	if err != nil {
		return Addresses{}
	}
	return a
}

// IndexOfMAC finds the index that has this MAC.
func (r Range) IndexOfMAC(mac net.HardwareAddr) (int, bool) {
	if len(mac) != 6 || len(r.MAC) != 6 || string(mac[:firstMACByte]) != string(r.MAC[:firstMACByte]) {
		return 0, false
	}
	return r.within(int64(binary.BigEndian.Uint32(mac[firstMACByte:])) - int64(binary.BigEndian.Uint32(r.MAC[firstMACByte:])))
}

// IndexOfIP finds the index that has this address, of whichever kind.
func (r Range) IndexOfIP(ip netip.Addr) (int, bool) {
	ip = ip.Unmap().WithZone("")
	switch {
	case !ip.IsValid():
		return 0, false
	case ip.Is4():
		if !r.Type.Has4() {
			return 0, false
		}
		return r.within(int64(bits4(ip)) - int64(bits4(r.IP)))
	case r.Type.HasStatic6():
		high, low := bits6(ip)
		baseHigh, baseLow := bits6(r.IP6)
		if high != baseHigh || low < baseLow || low-baseLow >= uint64(r.Size) {
			return 0, false
		}
		return int(low - baseLow), true
	case r.Type.HasSLAAC():
		b := ip.As16()
		mac := net.HardwareAddr{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]}
		index, ok := r.IndexOfMAC(mac)
		if !ok {
			return 0, false
		}
		a, err := r.Nth(index)
		return index, err == nil && (ip == a.Link || ip == a.Global || ip == a.ULA)
	}
	return 0, false
}

func (r Range) within(index int64) (int, bool) {
	if index < 0 || index >= int64(r.Size) {
		return 0, false
	}
	return int(index), true
}

// Overlap names the first attribute (MAC, IP, IP6) in which two ranges have an address in common, "" for none.
func Overlap(a, b Range) string {
	if string(a.MAC[:firstMACByte]) == string(b.MAC[:firstMACByte]) &&
		meet(uint64(binary.BigEndian.Uint32(a.MAC[firstMACByte:])), a.Size, uint64(binary.BigEndian.Uint32(b.MAC[firstMACByte:])), b.Size) {
		return "MAC"
	}
	if a.Type.Has4() && b.Type.Has4() && meet(uint64(bits4(a.IP)), a.Size, uint64(bits4(b.IP)), b.Size) {
		return "IP"
	}
	if a.Type.HasStatic6() && b.Type.HasStatic6() {
		aHigh, aLow := bits6(a.IP6)
		bHigh, bLow := bits6(b.IP6)
		if aHigh == bHigh && meet(aLow, a.Size, bLow, b.Size) {
			return "IP6"
		}
	}
	return ""
}

// meet tells whether two runs of numbers have one in common.
func meet(a uint64, aSize int, b uint64, bSize int) bool {
	if a <= b {
		return b-a < uint64(aSize)
	}
	return a-b < uint64(bSize)
}

func bits4(ip netip.Addr) uint32 {
	b := ip.As4()
	return binary.BigEndian.Uint32(b[:])
}

func bits6(ip netip.Addr) (high, low uint64) {
	b := ip.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func add4(ip netip.Addr, n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], bits4(ip)+uint32(n))
	return netip.AddrFrom4(b)
}

func add6(ip netip.Addr, n int) netip.Addr {
	b := ip.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+uint64(n))
	return netip.AddrFrom16(b)
}

func addMAC(mac net.HardwareAddr, n int) net.HardwareAddr {
	sum := append(net.HardwareAddr(nil), mac...)
	binary.BigEndian.PutUint32(sum[firstMACByte:], binary.BigEndian.Uint32(sum[firstMACByte:])+uint32(n))
	return sum
}

// slaac puts the modified EUI-64 of a MAC under a /64 prefix (RFC 4291, appendix A).
func slaac(prefix netip.Addr, mac net.HardwareAddr) netip.Addr {
	b := prefix.As16()
	copy(b[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(b)
}
