package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"hayloft/cloud/fault"
	"hayloft/internal/undo"
	"hayloft/network"
)

// Ensure implements network.Driver. A bridge of ours gets exactly the network's address: others that were put on
// it are removed. A bridge that is not ours, or that belongs to another network, is used as it is; only NAT
// applies to it, which is in our own table. With NAT the kernel forwards IPv4 in this namespace from then on;
// a firewall of the host's own that drops forwarded packets must let the bridge through itself.
func (d *Driver) Ensure(ctx context.Context, n network.Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkNetwork(n); err != nil {
		return err
	}
	d.ensuring.Lock()
	defer d.ensuring.Unlock()
	d.topology.RLock()
	defer d.topology.RUnlock()

	var steps undo.Stack
	link, err := d.link(n.Bridge)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = d.makeBridge(n, &steps); err != nil {
			return errors.Join(err, steps.Run())
		}
	}
	if link.Type() != "bridge" {
		return fault.Errorf(fault.Busy, "network %d: link %s is a %s, not a bridge", n.ID, n.Bridge, link.Type())
	}
	if id, ours := d.tag.network(link.Attrs().Alias); ours && id == n.ID {
		if err := d.converge(link, n); err != nil {
			return errors.Join(err, steps.Run())
		}
	}
	if err := d.nat(n); err != nil {
		return errors.Join(err, steps.Run())
	}
	steps.Keep()
	return nil
}

func (d *Driver) makeBridge(n network.Network, steps *undo.Stack) (netlink.Link, error) {
	draft := d.tag.draft(n.Bridge)
	if left, err := d.link(draft); err != nil {
		return nil, err
	} else if left != nil {
		if err := d.remove(left); err != nil {
			return nil, err
		}
	}
	if err := createBridge(draft, d.tag.mac(n.Bridge)); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", n.Bridge, err)
	}
	link, err := d.links.LinkByName(draft)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", n.Bridge, err)
	}
	steps.Push(func() error { return d.remove(link) })
	withoutIPv6 := !n.Gateway.IsValid() || n.Gateway.Addr().Is4()
	if err := nameBridge(link.Attrs().Index, n.Bridge, d.tag.net(n.ID), n.MTU, withoutIPv6); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", n.Bridge, err)
	}
	if link, err = d.links.LinkByName(n.Bridge); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", n.Bridge, err)
	}
	if err := sysctl("net/ipv6/conf/"+n.Bridge+"/accept_ra", "0"); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", n.Bridge, err)
	}
	d.log.Info("bridge made", "bridge", n.Bridge, "network", n.ID)
	return link, nil
}

// converge brings MTU, address, uplink and state of our own bridge to what the network says.
func (d *Driver) converge(link netlink.Link, n network.Network) error {
	if n.MTU > 0 && link.Attrs().MTU != n.MTU {
		if err := d.links.LinkSetMTU(link, n.MTU); err != nil {
			return fmt.Errorf("bridge %s: MTU %d: %w", n.Bridge, n.MTU, err)
		}
	}
	if err := d.address(link, n); err != nil {
		return err
	}
	if n.PhyDev != "" {
		if err := d.uplink(link, n); err != nil {
			return err
		}
	}
	if err := setUp(link.Attrs().Index); err != nil {
		return fmt.Errorf("bridge %s: set up: %w", n.Bridge, err)
	}
	return nil
}

func (d *Driver) address(link netlink.Link, n network.Network) error {
	have, err := whole(func() ([]netlink.Addr, error) { return d.links.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("bridge %s: addresses: %w", n.Bridge, err)
	}
	want := ""
	if n.Gateway.IsValid() {
		want = n.Gateway.String()
	}
	present := false
	for _, a := range have {
		switch {
		case a.IPNet.String() == want:
			present = true
		case !a.IP.IsLinkLocalUnicast():
			if err := d.links.AddrDel(link, &a); err != nil {
				return fmt.Errorf("bridge %s: remove address %v: %w", n.Bridge, a.IPNet, err)
			}
		}
	}
	if want == "" || present {
		return nil
	}
	addr, err := netlink.ParseAddr(want)
	if err != nil {
		return fault.Errorf(fault.Invalid, "network %d: gateway %s: %w", n.ID, want, err)
	}
	if err := d.links.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("bridge %s: address %s: %w", n.Bridge, want, err)
	}
	return nil
}

func (d *Driver) uplink(link netlink.Link, n network.Network) error {
	up, err := d.link(n.PhyDev)
	if err != nil {
		return err
	}
	if up == nil {
		return fault.Errorf(fault.NotFound, "network %d: uplink %s does not exist", n.ID, n.PhyDev)
	}
	switch up.Attrs().MasterIndex {
	case link.Attrs().Index:
	case 0:
		if err := d.links.LinkSetMaster(up, link); err != nil {
			return fmt.Errorf("bridge %s: uplink %s: %w", n.Bridge, n.PhyDev, err)
		}
	default:
		return fault.Errorf(fault.Busy, "network %d: uplink %s is on another bridge", n.ID, n.PhyDev)
	}
	if err := setUp(up.Attrs().Index); err != nil {
		return fmt.Errorf("uplink %s: set up: %w", n.PhyDev, err)
	}
	return nil
}

func (d *Driver) nat(n network.Network) error {
	if !n.NAT {
		return d.rules.dropMasquerade(n.ID)
	}
	if err := d.rules.setMasquerade(n); err != nil {
		return err
	}
	if err := sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return errors.Join(fmt.Errorf("network %d: %w", n.ID, err), d.rules.dropMasquerade(n.ID))
	}
	return nil
}

// sysctl sets a value of this namespace unless it is already so. A kernel without the whole subject is fine for
// IPv6 only.
func sysctl(key, value string) error {
	path := "/proc/sys/" + key
	have, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(key, "net/ipv6/") {
		return nil
	}
	if err != nil || strings.TrimSpace(string(have)) == value {
		return err
	}
	return os.WriteFile(path, []byte(value), 0o644)
}

// Release implements network.Driver.
func (d *Driver) Release(ctx context.Context, n network.Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkNetwork(n); err != nil {
		return err
	}
	d.topology.Lock()
	defer d.topology.Unlock()
	link, err := d.link(n.Bridge)
	if err != nil {
		return err
	}
	if link != nil {
		if id, ours := d.tag.network(link.Attrs().Alias); ours && id == n.ID {
			if err := d.empty(link, n); err != nil {
				return err
			}
			if err := d.remove(link); err != nil {
				return err
			}
			d.log.Info("bridge removed", "bridge", n.Bridge, "network", n.ID)
		}
	}
	if err := d.rules.dropMasquerade(n.ID); err != nil {
		return err
	}
	return d.rules.prune()
}

// empty refuses a bridge that has ports besides its uplink.
func (d *Driver) empty(link netlink.Link, n network.Network) error {
	links, err := d.all()
	if err != nil {
		return err
	}
	var ports []string
	for _, l := range links {
		if l.Attrs().MasterIndex == link.Attrs().Index && l.Attrs().Name != n.PhyDev {
			ports = append(ports, l.Attrs().Name)
		}
	}
	if len(ports) > 0 {
		return fault.Errorf(fault.Busy, "network %d: bridge %s still has ports: %s", n.ID, n.Bridge, strings.Join(ports, ", "))
	}
	return nil
}
