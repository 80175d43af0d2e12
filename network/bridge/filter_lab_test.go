package bridge

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"hayloft/network"
)

const (
	macA, macB = "02:00:0a:00:00:05", "02:00:0a:00:00:06"
	linkA      = "fe80::aff:fe00:5"
)

func addresses(list ...string) (ips []netip.Addr) {
	for _, text := range list {
		ips = append(ips, netip.MustParseAddr(text))
	}
	return ips
}

func TestFilteredPortPassesOnlyItsOwnFrames(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		check(t, d.Ensure(ctx, barn))
		port := network.Port{Name: "one-1-0", Kind: network.Veth, Machine: 1, MAC: macA, Filter: true}
		a := newGuest(t, "veth-later", macA, "", "")
		run(t, "ip", "link", "set", "veth-later", "down", "name", port.Name)
		// Not ours yet: taken.
		if _, err := d.Plug(ctx, barn, port); err == nil || !strings.Contains(err.Error(), "not ours") {
			t.Fatalf("plugged over a foreign link: %v", err)
		}
		run(t, "ip", "link", "set", port.Name, "name", "veth-later")
		b := newGuest(t, "one-2-0", macB, "10.0.0.6/24", barn.Bridge)
		spoofed, _ := net.ParseMAC("02:00:0a:00:00:09")
		broadcast, _ := net.ParseMAC("ff:ff:ff:ff:ff:ff")
		marker := etherFrame(b.mac, a.mac, typeRARP, []byte("marker"))
		na := func(target string) []byte {
			return append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
		}
		v4 := func(source net.HardwareAddr, packet []byte) []byte { return etherFrame(b.mac, source, typeIP4, packet) }
		v6 := func(packet []byte) []byte { return etherFrame(b.mac, a.mac, typeIP6, packet) }
		v6given, v6other := "2001:db8::5", "2001:db8::6"

		// One column per set of addresses: IPv4 only, with IPv6 too, none known, not filtered.
		plugs := []network.Port{port, port, port, port}
		plugs[0].IPs = addresses("10.0.0.5")
		plugs[1].IPs = addresses("10.0.0.5", "10.0.0.7", v6given)
		plugs[3].Filter = false
		tests := []struct {
			name  string
			frame []byte
			want  string // y or n for each column
		}{
			{"IPv4 from its own", v4(a.mac, ip4Packet("10.0.0.5", "10.0.0.6", 17, udp(9, 9))), "yyyy"},
			{"IPv4 from its second", v4(a.mac, ip4Packet("10.0.0.7", "10.0.0.6", 17, udp(9, 9))), "nyyy"},
			{"IPv4 from another's", v4(a.mac, ip4Packet("10.0.0.6", "10.0.0.6", 17, udp(9, 9))), "nnyy"},
			{"own IPv4 with another MAC", v4(spoofed, ip4Packet("10.0.0.5", "10.0.0.6", 17, udp(9, 9))), "nnny"},
			{"ARP request", etherFrame(broadcast, a.mac, typeARP, arpPacket(1, a.mac, "10.0.0.5", "10.0.0.6")), "yyyy"},
			{"ARP probe", etherFrame(broadcast, a.mac, typeARP, arpPacket(1, a.mac, "0.0.0.0", "10.0.0.5")), "yyyy"},
			{"ARP reply for another IP", etherFrame(b.mac, a.mac, typeARP, arpPacket(2, a.mac, "10.0.0.1", "10.0.0.6")), "nnyy"},
			{"ARP reply with another MAC inside", etherFrame(b.mac, a.mac, typeARP, arpPacket(2, spoofed, "10.0.0.5", "10.0.0.6")), "nnny"},
			{"DHCP discover", etherFrame(broadcast, a.mac, typeIP4, ip4Packet("0.0.0.0", "255.255.255.255", 17, udp(68, 67))), "yyyy"},
			{"from 0.0.0.0, no DHCP", etherFrame(broadcast, a.mac, typeIP4, ip4Packet("0.0.0.0", "255.255.255.255", 17, udp(9, 9))), "nnyy"},
			{"DHCP offer", v4(a.mac, ip4Packet("10.0.0.5", "10.0.0.6", 17, udp(67, 68))), "nnny"},
			{"IPv6 from the given", v6(ip6Packet(v6given, v6other, 17, udp(9, 9))), "nyyy"},
			{"IPv6 from another's", v6(ip6Packet(v6other, v6given, 17, udp(9, 9))), "nnyy"},
			{"IPv6 link-local UDP", v6(ip6Packet(linkA, "ff02::1", 17, udp(9, 9))), "nyyy"},
			{"router advertisement", v6(ip6Packet(linkA, "ff02::1", 58, append([]byte{134}, make([]byte, 15)...))), "nnny"},
			{"duplicate address detection", v6(ip6Packet("::", "ff02::1:ff00:5", 58, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(linkA).AsSlice()...))), "yyyy"},
			{"own neighbour advertisement", v6(ip6Packet(linkA, "ff02::1", 58, na(linkA))), "yyyy"},
			{"advertisement of the given IPv6", v6(ip6Packet(linkA, "ff02::1", 58, na(v6given))), "nyyy"},
			{"another's neighbour advertisement", v6(ip6Packet(linkA, "ff02::1", 58, na(v6other))), "nnyy"},
			{"DHCPv6 server", v6(ip6Packet(linkA, "ff02::1", 17, udp(547, 546))), "nnny"},
			{"redirect", v6(ip6Packet(linkA, "ff02::1", 58, append([]byte{137}, make([]byte, 39)...))), "nnny"},
			{"VLAN tag around a spoofed source", etherFrame(b.mac, a.mac, 0x8100, []byte{0, 5, 0x08, 0x00}, ip4Packet("10.0.0.6", "10.0.0.6", 17, udp(9, 9))), "nnny"},
			{"an unknown protocol", etherFrame(b.mac, a.mac, 0x88b5, []byte("hello")), "nnny"},
			{"ARP cut short", etherFrame(b.mac, a.mac, typeARP, []byte{0, 1, 8, 0, 6, 4, 0, 2}), "nnny"},
		}
		for column, plug := range plugs {
			if _, err := d.Plug(ctx, barn, plug); err != nil {
				t.Fatal(err)
			}
			if column == 0 { // the container's runtime makes the link after Plug
				run(t, "ip", "link", "set", "veth-later", "name", port.Name)
				run(t, "ip", "link", "set", port.Name, "master", barn.Bridge, "up")
				a.settle(b.receives)
			}
			if !plug.Filter {
				marker = etherFrame(b.mac, a.mac, typeRARP, []byte("open"))
			}
			for _, test := range tests {
				if got := a.passes(b, test.frame, marker); got != (test.want[column] == 'y') {
					t.Errorf("%s: column %d: passes = %v", test.name, column, got)
				}
			}
			if t.Failed() {
				t.Log(run(t, "nft", "list", "ruleset"))
			}
		}
	})
}
