package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/cloud/template"
)

// addressPlan is what the flags of a network say about IPv4 addresses.
type addressPlan struct {
	wantGateway bool // take a CIDR range's first address when none is given
	ranges      []addressRange
	gateway     netip.Addr
	network     netip.Prefix
}

type addressRange struct {
	first netip.Addr
	size  int
}

func (r addressRange) last() netip.Addr { return plus(r.first, r.size-1) }

// largestRange is a /8.
const largestRange = 1 << 24

func plus(ip netip.Addr, n int) netip.Addr {
	four := ip.As4()
	binary.BigEndian.PutUint32(four[:], binary.BigEndian.Uint32(four[:])+uint32(n))
	return netip.AddrFrom4(four)
}

func minus(x, y netip.Addr) int {
	a, b := x.As4(), y.As4()
	return int(int64(binary.BigEndian.Uint32(a[:])) - int64(binary.BigEndian.Uint32(b[:])))
}

func (p *addressPlan) read(ranges []string, gateway, netmask string) error {
	if gateway != "" {
		address, prefix, hasPrefix := strings.Cut(gateway, "/")
		var err error
		if p.gateway, err = address4("gateway", address); err != nil {
			return err
		}
		if hasPrefix && netmask == "" {
			netmask = prefix
		}
	}
	var networks []netip.Prefix
	var whole []addressRange
	for _, text := range ranges {
		r, network, err := readRange(text)
		if err != nil {
			return err
		}
		if network.IsValid() {
			networks = append(networks, network)
		}
		whole = append(whole, r)
	}
	if p.wantGateway && !p.gateway.IsValid() && len(networks) > 0 {
		p.gateway = plus(networks[0].Addr(), 1)
	}
	for _, r := range whole {
		p.ranges = append(p.ranges, p.without(r)...)
	}
	switch {
	case netmask != "":
		bits, err := maskBits(netmask)
		if err != nil {
			return err
		}
		p.network = netip.PrefixFrom(p.anyAddress(), bits).Masked()
	case len(networks) > 0:
		p.network = networks[0]
	case len(p.ranges) > 0:
		for bits := 24; bits >= 8; bits-- {
			p.network = netip.PrefixFrom(p.anyAddress(), bits).Masked()
			if p.inside() == nil {
				break
			}
		}
	}
	return p.inside()
}

// without takes the gateway out of a range.
func (p *addressPlan) without(r addressRange) []addressRange {
	at := -1
	if p.gateway.IsValid() {
		at = minus(p.gateway, r.first)
	}
	if at < 0 || at >= r.size {
		return []addressRange{r}
	}
	var parts []addressRange
	if at > 0 {
		parts = append(parts, addressRange{r.first, at})
	}
	if at < r.size-1 {
		parts = append(parts, addressRange{plus(r.first, at+1), r.size - at - 1})
	}
	return parts
}

func (p *addressPlan) anyAddress() netip.Addr {
	if len(p.ranges) > 0 {
		return p.ranges[0].first
	}
	return p.gateway
}

// inside checks that everything lies in the one network.
func (p *addressPlan) inside() error {
	if !p.network.IsValid() {
		return nil
	}
	for _, r := range p.ranges {
		if !p.network.Contains(r.first) || !p.network.Contains(r.last()) {
			return fault.Errorf(fault.Invalid, "range %s to %s is not inside %s: give --netmask", r.first, r.last(), p.network)
		}
	}
	if p.gateway.IsValid() && !p.network.Contains(p.gateway) {
		return fault.Errorf(fault.Invalid, "gateway %s is not inside %s", p.gateway, p.network)
	}
	return nil
}

func (p *addressPlan) apply(t *template.Template) {
	if len(p.ranges) > 0 {
		t.Delete("AR")
	}
	for _, r := range p.ranges {
		t.AddVector("AR", template.Vector{{Name: "TYPE", Value: "IP4"}, {Name: "IP", Value: r.first.String()}, {Name: "SIZE", Value: strconv.Itoa(r.size)}})
	}
	if p.gateway.IsValid() {
		t.Set("GATEWAY", p.gateway.String())
	}
	if p.network.IsValid() {
		t.Set("NETWORK_ADDRESS", p.network.Addr().String())
		t.Set("NETWORK_MASK", net.IP(net.CIDRMask(p.network.Bits(), 32)).String())
	}
}

// readRange reads IP+SIZE, a CIDR network, or IP/SIZE when the number cannot be a prefix length or the
// address is not that of a network. network is valid for CIDR only.
func readRange(text string) (r addressRange, network netip.Prefix, err error) {
	bad := func(why string) (addressRange, netip.Prefix, error) {
		return addressRange{}, netip.Prefix{}, fault.Errorf(fault.Invalid, "range %q: %s: want 10.20.0.0/24, 10.20.0.10/50 or 10.20.0.10+20", text, why)
	}
	address, number, slash := strings.Cut(text, "/")
	if !slash {
		var sum bool
		if address, number, sum = strings.Cut(text, "+"); !sum {
			return bad("no size")
		}
	}
	first, err := address4("range", address)
	if err != nil {
		return r, network, err
	}
	size, err := strconv.Atoi(number)
	if err != nil || size < 1 || size > largestRange {
		return bad("the size is not a number from 1")
	}
	if slash && size <= 32 {
		if network = netip.PrefixFrom(first, size); network.Masked().Addr() == first {
			if size > 30 || size < 8 {
				return bad("a network from /8 to /30 has addresses to lease")
			}
			return addressRange{plus(first, 1), 1<<(32-size) - 2}, network, nil
		}
	}
	if minus(netip.AddrFrom4([4]byte{255, 255, 255, 255}), first) < size {
		return bad("it goes beyond the last address there is")
	}
	return addressRange{first, size}, netip.Prefix{}, nil
}

func address4(what, text string) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil || !address.Is4() {
		return netip.Addr{}, fault.Errorf(fault.Invalid, "%s %q: not an IPv4 address (others: give a template with --file)", what, text)
	}
	return address, nil
}

// maskBits reads 24, /24 or 255.255.255.0.
func maskBits(text string) (int, error) {
	bits, err := strconv.Atoi(strings.TrimPrefix(text, "/"))
	if err == nil && bits >= 1 && bits <= 32 {
		return bits, nil
	}
	if address, err := netip.ParseAddr(text); err == nil && address.Is4() {
		four := address.As4()
		if ones, size := net.IPMask(four[:]).Size(); size == 32 && ones > 0 {
			return ones, nil
		}
	}
	return 0, fault.Errorf(fault.Invalid, "netmask %q: want 255.255.255.0 or 24", text)
}
