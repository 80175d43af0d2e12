package bridge

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
)

// Ports implements network.Driver, sorted by name.
func (d *Driver) Ports(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found, err := d.ports()
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// ports maps every port of ours to its link, nil when only its rules are there.
func (d *Driver) ports() (map[string]netlink.Link, error) {
	links, err := d.all()
	if err != nil {
		return nil, err
	}
	ruled, err := d.rules.ports()
	if err != nil {
		return nil, err
	}
	found := make(map[string]netlink.Link)
	for _, name := range ruled {
		found[name] = nil
	}
	for _, l := range links {
		a := l.Attrs()
		_, named := found[a.Name]
		if d.tag.isPort(a.Alias) || named && l.Type() == "veth" {
			found[a.Name] = l
		}
	}
	return found, nil
}

// Cleanup implements network.Driver: ports, then rules, then bridges. It goes on after a failure and reports all.
func (d *Driver) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.topology.Lock()
	defer d.topology.Unlock()
	found, err := d.ports()
	if err != nil {
		return err
	}
	// The kernel waits for readers of each link it deletes; the waits of several overlap.
	var group errgroup.Group
	group.SetLimit(16)
	for _, link := range found {
		if link == nil {
			continue
		}
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return d.remove(link)
		})
	}
	if err := group.Wait(); err != nil {
		return err // rules stay while a port may still be there
	}
	errs := []error{d.rules.dropAll()}
	links, err := d.all()
	if err != nil {
		return err
	}
	bridges := 0
	for _, l := range links {
		a := l.Attrs()
		_, ours := d.tag.network(a.Alias)
		draft := a.Alias == "" && strings.HasPrefix(a.Name, d.tag.draftPrefix())
		if l.Type() == "bridge" && (ours || draft) {
			errs = append(errs, d.remove(l))
			bridges++
		}
	}
	d.log.Info("network taken down", "ports", len(found), "bridges", bridges)
	return errors.Join(errs...)
}
