package address

import (
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"strconv"

	"hayloft/cloud/fault"
)

// macPrefixDefault is OpenNebula's default for the first two bytes of MACs.
var macPrefixDefault = [2]byte{0x02, 0x00}

// Defaults complete what an AR leaves out.
type Defaults struct {
	MACPrefix [2]byte       // MAC_PREFIX of the installation; zero for 02:00
	Random    func() uint32 // the other four bytes of a range's MAC when neither MAC nor IP is given; nil makes that an error
}

// Parse reads the attributes of an AR vector. Errors are fault.Invalid and name the attribute. Without a MAC it
// is the prefix and the four bytes of the IPv4 address. Attributes that are no addresses are not looked at.
func Parse(id int, attributes map[string]string, d Defaults) (Range, error) {
	p := parser{id: id, attributes: attributes}
	r := Range{ID: id, Type: p.kind()}
	r.Size = p.number("SIZE", 1, MaxSize)
	if r.Type.Has4() {
		r.IP = p.ip4("IP")
	}
	if r.Type.HasStatic6() {
		r.IP6 = p.ip6("IP6")
		r.Prefix = p.number("PREFIX_LENGTH", 1, 128)
	}
	if r.Type.HasSLAAC() {
		r.Global = p.prefix("GLOBAL_PREFIX")
		r.ULA = p.prefix("ULA_PREFIX")
	}
	r.MAC = p.mac(r, d)
	if p.err == nil {
		p.checkEnd(r)
	}
	if p.err != nil {
		return Range{}, p.err
	}
	return r, nil
}

// Attributes is the inverse of Parse: the AR vector, with AR_ID.
func (r Range) Attributes() map[string]string {
	a := map[string]string{
		"AR_ID": strconv.Itoa(r.ID), "TYPE": string(r.Type), "SIZE": strconv.Itoa(r.Size), "MAC": r.MAC.String(),
	}
	for name, ip := range map[string]netip.Addr{"IP": r.IP, "IP6": r.IP6, "GLOBAL_PREFIX": r.Global, "ULA_PREFIX": r.ULA} {
		if ip.IsValid() {
			a[name] = ip.String()
		}
	}
	if r.Type.HasStatic6() {
		a["PREFIX_LENGTH"] = strconv.Itoa(r.Prefix)
	}
	return a
}

// parser keeps the first error.
type parser struct {
	id         int
	attributes map[string]string
	err        error
}

func (p *parser) fail(name, why string) {
	if p.err != nil {
		return
	}
	if value, ok := p.attributes[name]; ok && value != "" {
		p.err = fault.Errorf(fault.Invalid, "AR %d: %s %q: %s", p.id, name, value, why)
	} else {
		p.err = fault.Errorf(fault.Invalid, "AR %d: %s is missing: %s", p.id, name, why)
	}
}

func (p *parser) kind() Type {
	switch t := Type(p.attributes["TYPE"]); t {
	case IP4, IP6, IP6Static, Dual, DualStatic, Ether:
		return t
	}
	p.fail("TYPE", "want IP4, IP6, IP6_STATIC, IP4_6, IP4_6_STATIC or ETHER")
	return ""
}

func (p *parser) number(name string, least, most int) int {
	n, err := strconv.Atoi(p.attributes[name])
	if err != nil || n < least || n > most {
		p.fail(name, "want a whole number from "+strconv.Itoa(least)+" to "+strconv.Itoa(most))
		return least
	}
	return n
}

func (p *parser) ip4(name string) netip.Addr {
	ip, err := netip.ParseAddr(p.attributes[name])
	if err != nil || !ip.Is4() {
		p.fail(name, "want an IPv4 address")
	}
	return ip
}

func (p *parser) ip6(name string) netip.Addr {
	ip, err := netip.ParseAddr(p.attributes[name])
	if err != nil || !ip.Is6() || ip.Is4In6() || ip.Zone() != "" {
		p.fail(name, "want an IPv6 address")
	}
	return ip
}

// prefix reads an optional /64 prefix: an address whose last 64 bits are 0, with or without "/64".
func (p *parser) prefix(name string) netip.Addr {
	text := p.attributes[name]
	if text == "" {
		return netip.Addr{}
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		var prefix netip.Prefix
		if prefix, err = netip.ParsePrefix(text); err == nil && prefix.Bits() == slaacBits {
			ip = prefix.Addr()
		}
	}
	if !ip.Is6() || ip.Is4In6() || ip.Zone() != "" {
		p.fail(name, "want an IPv6 prefix of 64 bits")
		return netip.Addr{}
	}
	if _, low := bits6(ip); low != 0 {
		p.fail(name, "want an IPv6 prefix of 64 bits: the rest must be 0")
	}
	return ip
}

func (p *parser) mac(r Range, d Defaults) net.HardwareAddr {
	if text := p.attributes["MAC"]; text != "" {
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			p.fail("MAC", "want a unicast Ethernet address")
			return nil
		}
		return mac
	}
	prefix := d.MACPrefix
	if prefix == ([2]byte{}) {
		prefix = macPrefixDefault
	}
	mac := net.HardwareAddr{prefix[0], prefix[1]}
	switch {
	case p.err != nil:
		return nil
	case r.Type.Has4():
		return binary.BigEndian.AppendUint32(mac, bits4(r.IP))
	case d.Random == nil:
		p.fail("MAC", "want one for type "+string(r.Type))
		return nil
	}
	start := d.Random()
	if room := uint32(math.MaxUint32 - r.Size + 1); start > room {
		start = room
	}
	return binary.BigEndian.AppendUint32(mac, start)
}

// checkEnd refuses a range that counts past the last address there is.
func (p *parser) checkEnd(r Range) {
	last := uint64(r.Size - 1)
	if r.Type.Has4() && uint64(bits4(r.IP))+last > math.MaxUint32 {
		p.fail("SIZE", "goes past the end of IPv4 from "+r.IP.String())
	}
	if r.Type.HasStatic6() {
		if _, low := bits6(r.IP6); low+last < low {
			p.fail("SIZE", "goes past the end of the /64 from "+r.IP6.String())
		}
	}
	if uint64(binary.BigEndian.Uint32(r.MAC[firstMACByte:]))+last > math.MaxUint32 {
		p.fail("SIZE", "goes past the end of the MACs from "+r.MAC.String())
	}
}
