package bridge

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"hayloft/cloud/fault"
	"hayloft/network"
)

func addDefaultRoute(gateway string) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: addresses(gateway)[0].AsSlice()})
}

func tapPort(vm int) network.Port {
	return network.Port{
		Name: fmt.Sprintf("one-%d-0", vm), Kind: network.Tap, Machine: vm, UID: 1234,
		MAC: fmt.Sprintf("02:00:0a:00:%02x:%02x", vm/250, vm%250+2), IPs: addresses(fmt.Sprintf("10.0.%d.%d", vm/250, vm%250+2)), Filter: true,
	}
}

func TestTapCarriesFramesWhileItIsHeld(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		port := tapPort(3) // 10.0.0.5, macA
		if _, err := d.Plug(ctx, barn, port); !fault.Is(err, fault.NotFound) {
			t.Fatalf("plug without a bridge: %v", err)
		}
		check(t, d.Ensure(ctx, barn))
		tap, err := d.Plug(ctx, barn, port)
		check(t, err)
		g := newGuest(t, "one-2-0", macB, "10.0.0.6/24", barn.Bridge)

		out := run(t, "ip", "-d", "link", "show", port.Name)
		for _, want := range []string{"hayloft:test:vm:3", "master hbr3", "vnet_hdr on", "persist off", "user 1234", "addrgenmode none", "LOWER_UP"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in %s", want, out)
			}
		}
		g.settle(func(frame []byte) bool { return readFrame(tap, frame, 50*time.Millisecond) == nil })
		// The guest asks for the tap's address; the tap's holder reads that and answers.
		asked := etherFrame(bytes.Repeat([]byte{0xff}, 6), g.mac, typeARP, arpPacket(1, g.mac, "10.0.0.6", "10.0.0.5"))
		g.send(asked)
		check(t, readFrame(tap, asked, patience))
		mac := mustMAC(macA)
		answer := etherFrame(g.mac, mac, typeARP, arpPacket(2, mac, "10.0.0.5", "10.0.0.6"))
		lie := etherFrame(g.mac, mac, typeARP, arpPacket(2, mac, "10.0.0.1", "10.0.0.6"))
		for _, frame := range [][]byte{lie, answer} {
			_, err := tap.Write(append(make([]byte, 10), frame...))
			check(t, err)
		}
		if got := g.first(lie, answer); !bytes.Equal(got, answer) {
			t.Errorf("the lie arrived: %x", got)
		}

		// Plugged again while held: refused, undisturbed, and the rules are there again if somebody took them.
		check(t, d.rules.dropPort(port.Name))
		if _, err := d.Plug(ctx, barn, port); !fault.Is(err, fault.Busy) {
			t.Fatalf("second plug: %v", err)
		}
		if have, err := d.rules.has(port.Name); !have || err != nil {
			t.Errorf("rules after the second plug: %v, %v", have, err)
		}
		g.send(asked)
		check(t, readFrame(tap, asked, patience))

		check(t, tap.Close())
		waitGone(t, port.Name)
		if names, err := d.Ports(ctx); err != nil || !slices.Equal(names, []string{port.Name}) {
			t.Errorf("ports after the holder died: %v, %v", names, err)
		}
		tap, err = d.Plug(ctx, barn, port) // starting the machine again
		check(t, err)
		for range 2 {
			check(t, d.Unplug(ctx, port.Name))
		}
		check(t, tap.Close())
		if names, err := d.Ports(ctx); err != nil || len(names) != 0 {
			t.Errorf("ports after unplug: %v, %v", names, err)
		}
	})
}

// readFrame reads from a tap until the frame comes, past what other frames there are.
func readFrame(tap *os.File, frame []byte, within time.Duration) error {
	if err := tap.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	buffer := make([]byte, 2048)
	for {
		n, err := tap.Read(buffer)
		if err != nil {
			return fmt.Errorf("frame on the tap: %w", err)
		}
		if n > 10 && bytes.Equal(buffer[10:n], frame) {
			return nil
		}
	}
}

// waitGone waits for the kernel, which removes a tap after its holder has closed it.
func waitGone(t *testing.T, name string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := netlink.LinkByName(name); err != nil {
			return
		}
	}
	t.Fatalf("%s is still there", name)
}

func TestCleanupFindsEverythingAfterACrash(t *testing.T) {
	isolated(t, func(t *testing.T) {
		ctx := context.Background()
		run(t, "nft", "add table bridge theirs; add table ip theirs")
		run(t, "ip", "link", "add", "theirs0", "type", "bridge")
		run(t, "ip", "link", "set", "theirs0", "alias", "hayloft:tester:net:1")
		before := state(t)
		first := newDriver(t)
		n := barn
		n.NAT = true
		check(t, first.Ensure(ctx, n))
		tap, err := first.Plug(ctx, n, tapPort(1))
		check(t, err)
		defer tap.Close()
		veth := tapPort(2)
		veth.Kind = network.Veth
		_, err = first.Plug(ctx, n, veth)
		check(t, err)
		newGuest(t, veth.Name, macB, "", n.Bridge)
		waiting := tapPort(4)
		waiting.Kind, waiting.Filter = network.Veth, false
		_, err = first.Plug(ctx, n, waiting)
		check(t, err)
		check(t, createBridge(first.tag.draft("hbr9"), first.tag.mac("hbr9"))) // died before it was named

		second := newDriver(t)
		if names, err := second.Ports(ctx); err != nil || !slices.Equal(names, []string{"one-1-0", "one-2-0", "one-4-0"}) {
			t.Errorf("ports seen by the next process: %v, %v", names, err)
		}
		other, err := New(Config{Instance: "other"})
		check(t, err)
		defer other.Close()
		check(t, other.Cleanup(ctx))
		if names, _ := second.Ports(ctx); len(names) != 3 {
			t.Errorf("another instance's cleanup left %v", names)
		}
		for range 2 {
			check(t, second.Cleanup(ctx))
			if after := state(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		}
	})
}

func TestHundredPortsAtOnce(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		before := state(t)
		n := barn
		n.Gateway = addressPrefix("10.0.0.1/16")
		check(t, d.Ensure(ctx, n))
		const count = 100
		taps := make([]*os.File, count)
		each := func(name string, work func(i int) error) {
			start := time.Now()
			var group sync.WaitGroup
			for i := range count {
				group.Go(func() {
					if err := work(i); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			took := time.Since(start)
			t.Logf("%s %d ports: %v, %v each", name, count, took, took/count)
		}
		each("plug", func(i int) (err error) {
			taps[i], err = d.Plug(ctx, n, tapPort(i))
			return err
		})
		if t.Failed() {
			return
		}
		if names, err := d.Ports(ctx); err != nil || len(names) != count {
			t.Errorf("%d ports, %v", len(names), err)
		}
		each("ensure again,", func(int) error { return d.Ensure(ctx, n) })
		each("unplug", func(i int) error { return d.Unplug(ctx, tapPort(i).Name) })
		for _, tap := range taps {
			check(t, tap.Close())
		}
		each("plug again", func(i int) (err error) {
			taps[i], err = d.Plug(ctx, n, tapPort(i))
			return err
		})
		start := time.Now()
		check(t, d.Cleanup(ctx))
		t.Logf("cleanup of %d ports: %v", count, time.Since(start))
		for _, tap := range taps {
			check(t, tap.Close())
		}
		if after := state(t); after != before {
			t.Errorf("left behind:\n%s", after)
		}
	})
}

func TestOnePortPluggedManyTimesAtOnce(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		check(t, d.Ensure(ctx, barn))
		type result struct {
			tap *os.File
			err error
		}
		results := make(chan result, 8)
		for range cap(results) {
			go func() {
				tap, err := d.Plug(ctx, barn, tapPort(1))
				results <- result{tap, err}
			}()
		}
		won := 0
		for range cap(results) {
			if r := <-results; r.err == nil {
				won++
				defer r.tap.Close() // not before all have tried: the collector of garbage would do it too
			} else if !fault.Is(r.err, fault.Busy) {
				t.Errorf("loser: %v", r.err)
			}
		}
		have, err := d.rules.has("one-1-0")
		if won != 1 || !have || err != nil {
			t.Errorf("%d winners, rules %v, %v", won, have, err)
		}
	})
}

func TestPortWithManyAddresses(t *testing.T) {
	isolated(t, func(t *testing.T) {
		d, ctx := newDriver(t), context.Background()
		check(t, d.Ensure(ctx, barn))
		port := tapPort(1)
		port.Kind, port.IPs = network.Veth, nil
		for i := range 32 {
			port.IPs = append(port.IPs, addresses(fmt.Sprintf("10.0.0.%d", i+2), fmt.Sprintf("2001:db8::%d", i+2))...)
		}
		_, err := d.Plug(ctx, barn, port)
		check(t, err)
		if rules := run(t, "nft", "list", "ruleset"); !strings.Contains(rules, "ip saddr 10.0.0.33 accept") || !strings.Contains(rules, "ip6 saddr 2001:db8::33 accept") {
			t.Errorf("rules: %s", rules)
		}
		check(t, d.Unplug(ctx, port.Name))
	})
}
