package address

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
)

// Subnet is what a virtual network says of its addresses besides the ranges.
type Subnet struct {
	Network  netip.Addr // NETWORK_ADDRESS; zero when not given
	Bits     int        // of NETWORK_MASK; 0 when not given
	Gateway  netip.Addr // GATEWAY, IPv4; zero for none
	Gateway6 netip.Addr // GATEWAY6; zero for none
}

// ParseSubnet reads NETWORK_ADDRESS, NETWORK_MASK (dotted or a number of bits), GATEWAY and GATEWAY6, all
// optional. Errors are fault.Invalid and name the attribute.
func ParseSubnet(attributes map[string]string) (Subnet, error) {
	var s Subnet
	var err error
	if s.Network, err = optional(attributes, "NETWORK_ADDRESS", netip.Addr.Is4, "IPv4"); err != nil {
		return Subnet{}, err
	}
	if s.Gateway, err = optional(attributes, "GATEWAY", netip.Addr.Is4, "IPv4"); err != nil {
		return Subnet{}, err
	}
	if s.Gateway6, err = optional(attributes, "GATEWAY6", netip.Addr.Is6, "IPv6"); err != nil {
		return Subnet{}, err
	}
	if text := attributes["NETWORK_MASK"]; text != "" {
		if s.Bits = maskBits(text); s.Bits == 0 {
			return Subnet{}, fault.Errorf(fault.Invalid, "NETWORK_MASK %q: want a mask such as 255.255.255.0, or 1 to 32", text)
		}
	}
	if s.Network.IsValid() && s.Bits > 0 {
		if first := netip.PrefixFrom(s.Network, s.Bits).Masked().Addr(); first != s.Network {
			return Subnet{}, fault.Errorf(fault.Invalid, "NETWORK_ADDRESS %q: with NETWORK_MASK /%d it would be %s", s.Network, s.Bits, first)
		}
	}
	return s, nil
}

func optional(attributes map[string]string, name string, is func(netip.Addr) bool, family string) (netip.Addr, error) {
	text := attributes[name]
	if text == "" {
		return netip.Addr{}, nil
	}
	ip, err := netip.ParseAddr(text)
	if err != nil || !is(ip) || ip.Zone() != "" {
		return netip.Addr{}, fault.Errorf(fault.Invalid, "%s %q: want an %s address", name, text, family)
	}
	return ip, nil
}

// maskBits is 0 for what is no mask.
func maskBits(text string) int {
	if ip, err := netip.ParseAddr(text); err == nil && ip.Is4() {
		for bits := 1; bits <= 32; bits++ {
			if bits4(ip) == ^uint32(0)<<(32-bits) {
				return bits
			}
		}
		return 0
	}
	bits, err := strconv.Atoi(strings.TrimPrefix(text, "/"))
	if err != nil || bits < 1 || bits > 32 {
		return 0
	}
	return bits
}

// Mask is NETWORK_MASK as a dotted address, "" when not given.
func (s Subnet) Mask() string {
	if s.Bits == 0 {
		return ""
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], ^uint32(0)<<(32-s.Bits))
	return netip.AddrFrom4(b).String()
}

// Prefix is the subnet that an IPv4 address of the network is in; the zero prefix when the mask is not known.
func (s Subnet) Prefix(ip netip.Addr) netip.Prefix {
	if s.Bits == 0 || !ip.Is4() {
		return netip.Prefix{}
	}
	if s.Network.IsValid() {
		return netip.PrefixFrom(s.Network, s.Bits)
	}
	return netip.PrefixFrom(ip, s.Bits).Masked()
}

// Host is the gateway with the network's mask, as a host takes it on its bridge; the zero prefix when either is
// not given.
func (s Subnet) Host() netip.Prefix {
	if s.Bits == 0 || !s.Gateway.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(s.Gateway, s.Bits)
}

// Reserved tells whether no machine may have this address: a gateway, and where the mask is known the network's
// own and its broadcast address (not in /31 and /32, RFC 3021).
func (s Subnet) Reserved(ip netip.Addr) bool {
	if !ip.IsValid() {
		return false
	}
	if ip == s.Gateway || ip == s.Gateway6 {
		return true
	}
	prefix := s.Prefix(ip)
	if !prefix.IsValid() || prefix.Bits() > 30 || !prefix.Contains(ip) {
		return false
	}
	host := bits4(ip) & (1<<(32-prefix.Bits()) - 1)
	return host == 0 || host == 1<<(32-prefix.Bits())-1
}
