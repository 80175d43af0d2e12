// Package bridge implements network.Driver with Linux bridges, taps and nftables, in the network namespace of
// the calling process. Links are tagged with an alias, rules live in tables of our own named after the
// instance, so that everything is found again after a crash and nothing else is touched.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/undo"
	"hayloft/network"
)

// Config says whose bridges and rules these are.
type Config struct {
	// Instance tags everything made: letters, digits, '_', '-' and '.', at most 32. Two drivers in one network
	// namespace need different instances.
	Instance string
	Log      *slog.Logger // nil: slog.Default
}

// Driver implements network.Driver.
type Driver struct {
	tag   tagger
	log   *slog.Logger
	links *netlink.Handle
	rules *rules

	// topology keeps a bridge from going away while a port is being put on it.
	topology sync.RWMutex
	// ensuring lets one Ensure work at a time, so that two networks do not make one bridge twice.
	ensuring sync.Mutex
}

var _ network.Driver = (*Driver)(nil)

// New opens the kernel's doors. It changes nothing yet.
func New(c Config) (*Driver, error) {
	tag, err := newTagger(c.Instance)
	if err != nil {
		return nil, err
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("route netlink: %w", err)
	}
	log := c.Log
	if log == nil {
		log = slog.Default()
	}
	return &Driver{tag: tag, log: log, links: links, rules: newRules(tag)}, nil
}

// Close gives back the driver's sockets. Bridges, ports and rules stay.
func (d *Driver) Close() error {
	d.links.Close()
	return nil
}

// Plug implements network.Driver. The port's rules are in force before its first frame. A port that exists
// already and is ours gets its rules made anew and is otherwise left alone: fault.Busy for a tap, which some
// process holds; success for a veth. A filtered port without addresses may use any IP, but only its MAC.
func (d *Driver) Plug(ctx context.Context, n network.Network, p network.Port) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	id, err := checkPort(p)
	if err != nil {
		return nil, err
	}
	d.topology.RLock()
	defer d.topology.RUnlock()
	bridge, err := d.link(n.Bridge)
	if err != nil {
		return nil, err
	}
	if bridge == nil {
		return nil, fault.Errorf(fault.NotFound, "port %s: bridge %s of network %d does not exist", p.Name, n.Bridge, n.ID)
	}
	if bridge.Type() != "bridge" {
		return nil, fault.Errorf(fault.Busy, "port %s: link %s is a %s, not a bridge", p.Name, n.Bridge, bridge.Type())
	}
	if done, err := d.existing(p, id); done || err != nil {
		return nil, err
	}
	if p.Kind == network.Veth {
		return nil, d.plugVeth(p, id)
	}
	return d.plugTap(n, bridge, p, id)
}

// existing handles a port whose link is already there.
func (d *Driver) existing(p network.Port, id identity) (bool, error) {
	link, err := d.link(p.Name)
	if link == nil || err != nil {
		return false, err
	}
	ours := d.tag.isPort(link.Attrs().Alias)
	if !ours && link.Type() == "veth" {
		if ours, err = d.rules.has(p.Name); err != nil {
			return false, err
		}
	}
	if !ours {
		return false, fault.Errorf(fault.Busy, "port %s: a link of that name exists and is not ours", p.Name)
	}
	if err := d.rules.setPort(p, id); err != nil {
		return false, err
	}
	if p.Kind == network.Tap {
		return false, fault.Errorf(fault.Busy, "port %s: its tap is held by a running process", p.Name)
	}
	return true, nil
}

func (d *Driver) plugVeth(p network.Port, id identity) error {
	if err := d.rules.setPort(p, id); err != nil {
		return err
	}
	d.log.Info("port ready", "port", p.Name, "vm", p.Machine, "kind", p.Kind)
	return nil
}

func (d *Driver) plugTap(n network.Network, bridge netlink.Link, p network.Port, id identity) (*os.File, error) {
	var steps undo.Stack
	fail := func(err error) (*os.File, error) { return nil, errors.Join(err, steps.Run()) }

	tap, err := openTap(p.Name, p.UID)
	if err != nil {
		return nil, err
	}
	steps.Push(tap.Close)
	if err := d.rules.setPort(p, id); err != nil {
		return fail(err)
	}
	steps.Push(func() error { return d.rules.dropPort(p.Name) })
	link, err := d.links.LinkByName(p.Name)
	if err != nil {
		return fail(fmt.Errorf("port %s: %w", p.Name, err))
	}
	index := link.Attrs().Index
	if err := dressPort(index, d.tag.port(p.Machine), n.MTU, bridge.Attrs().Index); err != nil {
		return fail(fmt.Errorf("port %s: put on bridge %s: %w", p.Name, n.Bridge, err))
	}
	if err := setUp(index); err != nil {
		return fail(fmt.Errorf("port %s: set up: %w", p.Name, err))
	}
	d.log.Info("port ready", "port", p.Name, "vm", p.Machine, "kind", p.Kind)
	return tap, nil
}

// Unplug implements network.Driver. The link goes first, so that it is never on the bridge without its rules.
func (d *Driver) Unplug(ctx context.Context, port string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName("port", port); err != nil {
		return err
	}
	d.topology.RLock()
	defer d.topology.RUnlock()
	link, err := d.link(port)
	if err != nil {
		return err
	}
	ruled, err := d.rules.has(port)
	if err != nil {
		return err
	}
	if link != nil && (d.tag.isPort(link.Attrs().Alias) || ruled && link.Type() == "veth") {
		if err := d.remove(link); err != nil {
			return err
		}
	} else if !ruled {
		return nil
	}
	if ruled {
		if err := d.rules.dropPort(port); err != nil {
			return err
		}
	}
	d.log.Info("port removed", "port", port)
	return nil
}
