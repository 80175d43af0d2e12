package bridge

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/network"
)

func mustMAC(text string) net.HardwareAddr {
	mac, err := net.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return mac
}

func addressPrefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func TestBadInputIsRefusedByName(t *testing.T) {
	for _, instance := range []string{"", "a:b", "a b", strings.Repeat("x", 33)} {
		if _, err := New(Config{Instance: instance}); !fault.Is(err, fault.Invalid) {
			t.Errorf("instance %q: %v", instance, err)
		}
	}
	good := network.Port{Name: "one-1-0", Kind: network.Tap, MAC: macA}
	ports := map[string]func(*network.Port){
		"a-name-too-long-":  func(p *network.Port) { p.Name = "a-name-too-long-" },
		"../x":              func(p *network.Port) { p.Name = "../x" },
		"one%d":             func(p *network.Port) { p.Name = "one%d" },
		"a\\nb":             func(p *network.Port) { p.Name = "a\nb" },
		"wire":              func(p *network.Port) { p.Kind = "wire" },
		"ff:ff:ff:ff:ff:ff": func(p *network.Port) { p.MAC = "ff:ff:ff:ff:ff:ff" },
		"02:00":             func(p *network.Port) { p.MAC = "02:00" },
		"224.0.0.1":         func(p *network.Port) { p.IPs = addresses("224.0.0.1") },
		"invalid IP":        func(p *network.Port) { p.IPs = []netip.Addr{{}} },
	}
	for want, spoil := range ports {
		p := good
		spoil(&p)
		if _, err := checkPort(p); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	networks := map[string]func(*network.Network){
		"x/y":    func(n *network.Network) { n.Bridge = "x/y" },
		"~draft": func(n *network.Network) { n.Bridge = "~draft" },
		"p q":    func(n *network.Network) { n.PhyDev = "p q" },
		"MTU 5":  func(n *network.Network) { n.MTU = 5 },
		"NAT":    func(n *network.Network) { n.NAT, n.Gateway = true, netip.Prefix{} },
	}
	for want, spoil := range networks {
		n := network.Network{ID: 1, Bridge: "br", Gateway: addressPrefix("10.0.0.1/24")}
		spoil(&n)
		if err := checkNetwork(n); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestCancelledContextChangesNothing(t *testing.T) {
	d, err := New(Config{Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	n := network.Network{ID: 1, Bridge: "hayloft-no-such"}
	_, plug := d.Plug(ctx, n, network.Port{})
	_, list := d.Ports(ctx)
	for _, err := range []error{d.Ensure(ctx, n), d.Release(ctx, n), plug, d.Unplug(ctx, "x"), list, d.Cleanup(ctx)} {
		if err != context.Canceled {
			t.Errorf("got %v", err)
		}
	}
}

func TestMissingKernelPartsAreNamed(t *testing.T) {
	err := unsupported("nftables family bridge", unix.EOPNOTSUPP)
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "family bridge") {
		t.Error(err)
	}
	if err := unsupported("nftables", unix.EPERM); fault.Is(err, fault.Unsupported) || err == nil {
		t.Error(err)
	}
	if err := unsupported("nftables", nil); err != nil {
		t.Error(err)
	}
}

func TestDraftNamesFitAndDiffer(t *testing.T) {
	a, _ := newTagger("a")
	b, _ := newTagger("b")
	if n := a.draft("hbr1"); len(n) > 15 || n == a.draft("hbr2") || n == b.draft("hbr1") || checkName("x", n) != nil {
		t.Errorf("draft %q", n)
	}
}
