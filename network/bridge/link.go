package bridge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// link looks a link up by name; nil when there is none.
func (d *Driver) link(name string) (netlink.Link, error) {
	link, err := d.links.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	return link, nil
}

// all lists every link.
func (d *Driver) all() ([]netlink.Link, error) {
	links, err := whole(d.links.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list of links: %w", err)
	}
	return links, nil
}

// whole asks for a list again when links or addresses, of anybody's, changed while it was read: the kernel then says that
// it may be incomplete.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for began := time.Now(); ; time.Sleep(rand.N(listAgain)) {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || time.Since(began) > listLimit {
			return all, err
		}
	}
}

// Between two attempts to read a list, at most, and for how long it is tried.
const (
	listAgain = 5 * time.Millisecond
	listLimit = 30 * time.Second
)

// remove deletes a link; one that is gone already is fine. It uses a socket of its own: the kernel answers only
// after all readers of the link are done, about 20 ms, and such waits of several links overlap.
func (d *Driver) remove(link netlink.Link) error {
	err := netlink.LinkDel(link)
	if err == nil || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		gone, lookup := d.link(link.Attrs().Name)
		if lookup == nil && (gone == nil || gone.Attrs().Index != link.Attrs().Index) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("link %s: delete: %w", link.Attrs().Name, err)
	}
	return nil
}

// createBridge makes a bridge in one step: STP off, no forwarding delay, no multicast snooping (which costs CPU
// for every multicast frame times ports), and a fixed MAC.
func createBridge(name string, mac net.HardwareAddr) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_MCAST_SNOOPING, nl.Uint8Attr(0))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// nameBridge gives a fresh bridge its name, alias and MTU (0: as it is) together.
func nameBridge(index int, name, alias string, mtu int, noAddress bool) error {
	req := change(index)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	if mtu > 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return err
	}
	if noAddress {
		return noLinkLocal(index)
	}
	return nil
}

// dressPort gives a tap its alias, MTU (0: as it is) and bridge, and keeps the host from taking an IPv6 address
// on it.
func dressPort(index int, alias string, mtu, bridge int) error {
	req := change(index)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	if mtu > 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return err
	}
	return noLinkLocal(index)
}

// From linux/if_link.h: IFLA_INET6_ADDR_GEN_MODE and IN6_ADDR_GEN_MODE_NONE.
const (
	addrGenMode = 8
	addrGenNone = 1
)

// noLinkLocal turns IPv6 autoconfiguration of a link's own address off. A kernel without IPv6, or with it off on
// this link, has none to turn off.
func noLinkLocal(index int) error {
	req := change(index)
	af := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	af.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(addrGenMode, nl.Uint8Attr(addrGenNone))
	req.AddData(af)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func setUp(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func change(index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}
