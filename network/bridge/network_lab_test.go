package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"hayloft/cloud/fault"
	"hayloft/network"
)

func TestEnsureMakesTheBridgeAndReleaseRemovesIt(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		before := state(t)
		n := barn
		n.MTU = 1400
		check(t, d.Ensure(ctx, n))
		var links []struct {
			Address  string
			MTU      int
			Ifalias  string
			Flags    []string
			Linkinfo struct {
				Data struct {
					ForwardDelay  int `json:"forward_delay"`
					STP           int `json:"stp_state"`
					McastSnooping int `json:"mcast_snooping"`
				} `json:"info_data"`
			}
		}
		show := func() {
			t.Helper()
			links = nil
			check(t, json.Unmarshal([]byte(run(t, "ip", "-d", "-j", "link", "show", n.Bridge)), &links))
		}
		show()
		data := links[0].Linkinfo.Data
		if links[0].Ifalias != "hayloft:test:net:3" || links[0].MTU != 1400 || data.ForwardDelay != 0 || data.STP != 0 || data.McastSnooping != 0 {
			t.Errorf("bridge is %+v", links[0])
		}
		mac := links[0].Address
		newGuest(t, "one-9-0", "00:00:00:00:00:01", "", n.Bridge)
		if err := d.Release(ctx, n); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "one-9-0") {
			t.Fatalf("release with a port: %v", err)
		}
		// Another gateway and MTU replace the old ones; asking again changes nothing.
		n.Gateway, n.MTU = netip.MustParsePrefix("10.1.0.1/16"), 1300
		for range 2 {
			check(t, d.Ensure(ctx, n))
			if got := run(t, "ip", "-br", "addr", "show", n.Bridge); !strings.Contains(got, "10.1.0.1/16") || strings.Contains(got, "10.0.0.1") || strings.Contains(got, "fe80") {
				t.Fatalf("addresses: %s", got)
			}
		}
		if show(); links[0].Address != mac || links[0].MTU != 1300 {
			t.Errorf("after a port came the bridge is %+v, was %s", links[0], mac)
		}
		run(t, "ip", "link", "del", "one-9-0")
		for range 2 {
			check(t, d.Release(ctx, n))
		}
		if after := state(t); after != before {
			t.Errorf("left behind:\n%s", after)
		}
	})
}

// state is what there is in this namespace, for comparing.
func state(t *testing.T) string {
	return run(t, "ip", "-br", "link") + run(t, "ip", "-br", "addr") + run(t, "nft", "list", "ruleset")
}

func TestForeignThingsStay(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		run(t, "ip", "link", "add", "hbr3", "address", "0e:00:00:00:00:03", "type", "bridge")
		run(t, "ip", "addr", "add", "192.168.7.1/24", "dev", "hbr3")
		run(t, "ip", "link", "add", "wire0", "type", "veth")
		run(t, "ip", "link", "add", "one-5-0", "type", "veth")
		run(t, "nft", "add table bridge hayloft_other; add chain bridge hayloft_other c { type filter hook forward priority 0; }; add table ip filter")
		before := state(t)
		n := barn
		n.NAT = true
		check(t, d.Ensure(ctx, n))
		if got := run(t, "ip", "-br", "addr", "show", "hbr3"); !strings.Contains(got, "192.168.7.1/24") || strings.Contains(got, "10.0.0.1") {
			t.Errorf("a foreign bridge was changed: %s", got)
		}
		taken := n
		taken.Bridge = "wire0"
		if err := d.Ensure(ctx, taken); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "wire0") {
			t.Errorf("a veth for a bridge: %v", err)
		}
		for _, kind := range []network.Kind{network.Tap, network.Veth} {
			p := network.Port{Name: "one-5-0", Kind: kind, Machine: 5, MAC: macA, Filter: true}
			if _, err := d.Plug(ctx, n, p); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "one-5-0") {
				t.Errorf("%s over a foreign link: %v", kind, err)
			}
		}
		check(t, d.Unplug(ctx, "one-5-0"))
		file, err := d.Plug(ctx, n, network.Port{Name: "one-1-0", Kind: network.Tap, Machine: 1, MAC: macA, Filter: true})
		check(t, err)
		defer file.Close()
		check(t, d.Unplug(ctx, "one-1-0"))
		check(t, d.Release(ctx, n))
		if after := state(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}

// Links of others come and go while the addresses of a bridge are looked at.
func TestEnsureWhileLinksComeAndGo(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		check(t, d.Ensure(ctx, barn))
		lo, err := netlink.LinkByName("lo")
		check(t, err)
		for i := range 600 { // more than the kernel tells at a time
			addr, err := netlink.ParseAddr(fmt.Sprintf("10.9.%d.%d/32", i/250, i%250+1))
			check(t, err)
			check(t, netlink.AddrAdd(lo, addr))
		}
		stop := make(chan struct{})
		var group sync.WaitGroup
		for i := range 2 {
			group.Go(func() {
				link := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
				for link.Name = fmt.Sprint("theirs", i); ; {
					select {
					case <-stop:
						return
					default:
					}
					if err := errors.Join(netlink.LinkAdd(link), netlink.LinkDel(link)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 20 {
			if err := d.Ensure(ctx, barn); err != nil {
				t.Error(err)
				break
			}
		}
		close(stop)
		group.Wait()
		check(t, d.Release(ctx, barn))
	})
}

func TestUplinkIsEnslavedAndLetGo(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		n := barn
		n.PhyDev = "uplink0"
		if err := d.Ensure(ctx, n); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "uplink0") {
			t.Fatalf("missing uplink: %v", err)
		}
		if out := run(t, "ip", "-br", "link"); strings.Contains(out, n.Bridge) {
			t.Errorf("a failed Ensure left %s", out)
		}
		run(t, "ip", "link", "add", "uplink0", "type", "veth")
		check(t, d.Ensure(ctx, n))
		if out := run(t, "ip", "link", "show", "uplink0"); !strings.Contains(out, "master hbr3") {
			t.Errorf("uplink: %s", out)
		}
		check(t, d.Release(ctx, n))
		if out := run(t, "ip", "link", "show", "uplink0"); strings.Contains(out, "master") {
			t.Errorf("uplink after release: %s", out)
		}
	})
}

func TestMasqueradeHidesTheNetwork(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		outside := newGuest(t, "wan0", "02:00:c0:00:02:02", "192.0.2.2/24", "")
		run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "wan0")
		n := barn
		n.NAT = true
		for range 2 {
			check(t, d.Ensure(ctx, n))
		}
		if rules := run(t, "nft", "list", "table", "ip", "hayloft_test"); strings.Count(rules, "masquerade") != 1 {
			t.Errorf("rules after two Ensures: %s", rules)
		}
		port := network.Port{Name: "one-1-0", Kind: network.Veth, Machine: 1, MAC: macA, IPs: addresses("10.0.0.5"), Filter: true}
		_, err := d.Plug(ctx, n, port)
		check(t, err)
		inside := newGuest(t, port.Name, macA, "10.0.0.5/24", n.Bridge)
		inNamespace(t, &inside.ns, func() error { return addDefaultRoute("10.0.0.1") })

		var listener net.PacketConn
		inNamespace(t, &outside.ns, func() (err error) {
			listener, err = net.ListenPacket("udp4", "192.0.2.2:9000")
			return err
		})
		defer listener.Close()
		var caller net.Conn
		inNamespace(t, &inside.ns, func() (err error) {
			caller, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 9000})
			return err
		})
		defer caller.Close()
		// Said until it is heard: the kernel drops what a link that is not up yet would carry.
		var from net.Addr
		var size int
		buffer := make([]byte, 64)
		for deadline := time.Now().Add(patience); ; {
			_, _ = caller.Write([]byte("hello")) // may report that an earlier one found nobody
			check(t, listener.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
			if _, from, err = listener.ReadFrom(buffer); err == nil || time.Now().After(deadline) {
				break
			}
		}
		check(t, err)
		if host, _, _ := net.SplitHostPort(from.String()); host != "192.0.2.1" {
			t.Errorf("the outside sees %s", from)
		}
		for deadline := time.Now().Add(patience); ; {
			_, err = listener.WriteTo([]byte("answer"), from)
			check(t, err)
			check(t, caller.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
			if size, err = caller.Read(buffer); err == nil || time.Now().After(deadline) {
				break
			}
		}
		if err != nil || string(buffer[:size]) != "answer" {
			t.Errorf("answer: %q, %v", buffer[:size], err)
		}

		// Without NAT the rule goes, and with it the table when the network is released.
		n.NAT = false
		check(t, d.Ensure(ctx, n))
		if rules := run(t, "nft", "list", "table", "ip", "hayloft_test"); strings.Contains(rules, "masquerade") {
			t.Errorf("rules without NAT: %s", rules)
		}
		check(t, d.Unplug(ctx, port.Name))
		check(t, d.Release(ctx, n))
		if rules := run(t, "nft", "list", "ruleset"); rules != "" {
			t.Errorf("left: %s", rules)
		}
		if _, err := os.Stat("/proc/sys/net/ipv4/conf/" + port.Name); err == nil {
			t.Error("the veth is still there")
		}
	})
}
