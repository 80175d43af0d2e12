package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/network"
)

// tagger makes and reads the marks by which our things are known.
type tagger struct{ instance string }

var instanceName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,32}$`)

func newTagger(instance string) (tagger, error) {
	if !instanceName.MatchString(instance) {
		return tagger{}, fault.Errorf(fault.Invalid, "instance %q: want 1 to 32 letters, digits, '_', '-' or '.'", instance)
	}
	return tagger{instance}, nil
}

func (t tagger) net(id int) string  { return fmt.Sprintf("hayloft:%s:net:%d", t.instance, id) }
func (t tagger) port(vm int) string { return fmt.Sprintf("hayloft:%s:vm:%d", t.instance, vm) }

// table is the name of our tables in every nftables family.
func (t tagger) table() string { return "hayloft_" + t.instance }

func (t tagger) isPort(alias string) bool {
	return strings.HasPrefix(alias, "hayloft:"+t.instance+":vm:")
}

// network reads the id from a bridge's alias.
func (t tagger) network(alias string) (int, bool) {
	text, ok := strings.CutPrefix(alias, "hayloft:"+t.instance+":net:")
	if !ok {
		return 0, false
	}
	id, err := strconv.Atoi(text)
	return id, err == nil
}

// draftPrefix begins the names of bridges that do not have their alias yet: a bridge is made under such a name
// and gets its own name and its alias in one step, so that a crash never leaves an unmarked one.
func (t tagger) draftPrefix() string {
	sum := sha256.Sum256([]byte(t.instance))
	return "~" + hex.EncodeToString(sum[:3])
}

func (t tagger) draft(bridge string) string {
	sum := sha256.Sum256([]byte(bridge))
	return t.draftPrefix() + hex.EncodeToString(sum[:4])
}

// mac is a bridge's own address: fixed, so that it does not follow the lowest of its ports, and outside of the
// 02:00 range of machines.
func (t tagger) mac(bridge string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(t.instance + "/" + bridge))
	return append(net.HardwareAddr{0x0e}, sum[:5]...)
}

// checkName refuses what the kernel would refuse or read in another way.
func checkName(noun, name string) error {
	bad := name == "" || name == "." || name == ".." || len(name) > 15
	for _, r := range name {
		bad = bad || r <= ' ' || r > '~' || r == '/' || r == ':' || r == '%'
	}
	if bad {
		return fault.Errorf(fault.Invalid, "%s name %q: want 1 to 15 printable characters without '/', ':' and '%%'", noun, name)
	}
	return nil
}

// identity is what a port may call itself.
type identity struct {
	mac    net.HardwareAddr
	ip4    [][]byte
	ip6    [][]byte // without the link-local one
	filter bool
}

func checkPort(p network.Port) (identity, error) {
	if err := checkName("port", p.Name); err != nil {
		return identity{}, err
	}
	if p.Kind != network.Tap && p.Kind != network.Veth {
		return identity{}, fault.Errorf(fault.Invalid, "port %s: kind %q: want tap or veth", p.Name, p.Kind)
	}
	mac, err := net.ParseMAC(p.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return identity{}, fault.Errorf(fault.Invalid, "port %s: MAC %q is not a unicast Ethernet address", p.Name, p.MAC)
	}
	id := identity{mac: mac, filter: p.Filter}
	for _, ip := range p.IPs {
		switch ip = ip.Unmap(); {
		case !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast():
			return identity{}, fault.Errorf(fault.Invalid, "port %s: IP %v is not a host's address", p.Name, ip)
		case ip.Is4():
			id.ip4 = append(id.ip4, ip.AsSlice())
		default:
			id.ip6 = append(id.ip6, ip.WithZone("").AsSlice())
		}
	}
	return id, nil
}

func checkNetwork(n network.Network) error {
	if err := checkName("bridge", n.Bridge); err != nil {
		return fmt.Errorf("network %d: %w", n.ID, err)
	}
	if strings.HasPrefix(n.Bridge, "~") {
		return fault.Errorf(fault.Invalid, "network %d: bridge name %q must not begin with '~'", n.ID, n.Bridge)
	}
	if n.PhyDev != "" {
		if err := checkName("uplink", n.PhyDev); err != nil {
			return fmt.Errorf("network %d: %w", n.ID, err)
		}
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
		return fault.Errorf(fault.Invalid, "network %d: MTU %d is not within 68 and 65535", n.ID, n.MTU)
	}
	if n.Gateway != (netip.Prefix{}) && !n.Gateway.IsValid() {
		return fault.Errorf(fault.Invalid, "network %d: gateway %v is not valid", n.ID, n.Gateway)
	}
	if n.NAT && !(n.Gateway.IsValid() && n.Gateway.Addr().Is4()) {
		return fault.Errorf(fault.Invalid, "network %d: NAT needs an IPv4 gateway", n.ID)
	}
	return nil
}
