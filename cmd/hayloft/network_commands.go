package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/template"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

var networks = resource[api.Network]{
	kind: cloud.KindNetwork,
	key:  func(n *api.Network) (int, string) { return n.ID, n.Name },
	columns: func(*app) []column[api.Network] {
		return []column[api.Network]{
			{title: "ID", right: true, cell: func(n *api.Network) string { return strconv.Itoa(n.ID) }},
			{title: "NAME", least: 8, cell: func(n *api.Network) string { return n.Name }},
			{title: "CLUSTERS", least: 4, cell: func(n *api.Network) string { return idsText(n.Clusters) }},
			{title: "BRIDGE", cell: func(n *api.Network) string { return n.Bridge }},
			{title: "LEASES", right: true, cell: leasesText},
			{title: "GATEWAY", cell: func(n *api.Network) string { value, _ := n.Template.Get("GATEWAY"); return value }},
			{title: "FILTER", cell: func(n *api.Network) string { return yesNo(n.Filter) }},
			{title: "NAT", cell: func(n *api.Network) string { return yesNo(n.NAT) }},
		}
	},
	show: showNetwork,
}

func leasesText(n *api.Network) string { return fmt.Sprintf("%d/%d", len(n.Leases), n.Size) }

func showNetwork(p *page, _ *app, n *api.Network) {
	p.section(fmt.Sprintf("Network %d information", n.ID))
	p.field("ID", n.ID)
	p.field("NAME", n.Name)
	p.field("CLUSTERS", idsText(n.Clusters))
	p.field("BRIDGE", n.Bridge)
	p.field("VN_MAD", n.VNMAD)
	p.field("PHYDEV", n.PhyDev)
	if n.MTU > 0 {
		p.field("MTU", n.MTU)
	}
	p.field("FILTER", yesNo(n.Filter))
	p.field("HOST GATEWAY", yesNo(n.Host))
	p.field("NAT", yesNo(n.NAT))
	p.field("USED LEASES", leasesText(n))
	p.section("Address ranges")
	attribute := func(name string) func(*cloud.AddressRange) string {
		return func(r *cloud.AddressRange) string { return r.Attributes[name] }
	}
	rows(p, n.Ranges,
		column[cloud.AddressRange]{title: "AR", right: true, cell: func(r *cloud.AddressRange) string { return strconv.Itoa(r.ID) }},
		column[cloud.AddressRange]{title: "TYPE", cell: attribute("TYPE")},
		column[cloud.AddressRange]{title: "SIZE", right: true, cell: attribute("SIZE")},
		column[cloud.AddressRange]{title: "IP", cell: attribute("IP")},
		column[cloud.AddressRange]{title: "MAC", cell: attribute("MAC")},
		column[cloud.AddressRange]{title: "GLOBAL_PREFIX", cell: attribute("GLOBAL_PREFIX")})
	if len(n.Leases) > 0 {
		p.section("Leases")
		leases := slices.Clone(n.Leases)
		slices.SortFunc(leases, func(x, y cloud.Lease) int { return (x.Range-y.Range)*1e6 + x.Index - y.Index })
		rows(p, leases,
			column[cloud.Lease]{title: "AR", right: true, cell: func(l *cloud.Lease) string { return strconv.Itoa(l.Range) }},
			column[cloud.Lease]{title: "IP", cell: func(l *cloud.Lease) string { return l.IP }},
			column[cloud.Lease]{title: "MAC", cell: func(l *cloud.Lease) string { return l.MAC }},
			column[cloud.Lease]{title: "OWNER", cell: leaseOwner})
	}
	p.template("Template", n.Template)
}

func leaseOwner(l *cloud.Lease) string {
	if l.VM < 0 {
		return "held"
	}
	return fmt.Sprintf("vm %d, nic %d", l.VM, l.NIC)
}

func newNetworkCommand(a *app) *cobra.Command {
	cmd := group("network", "Virtual networks: bridges with addresses to lease",
		"  hayloft network create --name lan --range 10.20.0.0/24 --nat\n  hayloft network show lan", "net", "vnet")
	cmd.AddCommand(
		networks.listCommand(a, "hayloft network list", nil),
		networks.showCommand(a, "hayloft network show lan"),
		networks.deleteCommand(a, "hayloft network delete lan"),
		newNetworkCreateCommand(a),
	)
	return cmd
}

// networkFlags are the flags of `hayloft network create`.
type networkFlags struct {
	input
	bridge, driver, phydev, gateway, netmask, cluster string
	ranges, dns                                       []string
	mtu                                               int
	hostGateway, nat, filter                          bool
}

func newNetworkCreateCommand(a *app) *cobra.Command {
	f := networkFlags{input: input{app: a}}
	var cmd *cobra.Command
	cmd = one("create", "Make a virtual network",
		`hayloft network create --name lan --range 10.20.0.0/24 --nat --dns 9.9.9.9
  hayloft network create --name office --bridge br0 --range 192.168.7.100/50 --gateway 192.168.7.1
  hayloft network create --file lan.tmpl`,
		a.remote(func(ctx context.Context, c *client.Client, _ []string) error {
			t, err := f.template(cmd.Flags().Changed("filter"))
			if err != nil {
				return err
			}
			id, err := c.CreateNetwork(ctx, t.String(), f.cluster)
			if err != nil {
				return err
			}
			return a.created(cloud.KindNetwork, id)
		}))
	cmd.Long = `Make a virtual network.

A range is a CIDR network (10.20.0.0/24: all its addresses but the gateway's), or a first address and
how many (10.20.0.10/50, or 10.20.0.10+20 where the number could be a prefix length).`
	f.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.bridge, "bridge", "", "bridge on the hosts (default: one of its own)")
	flags.StringArrayVar(&f.ranges, "range", nil, "addresses: CIDR, or IP/SIZE (repeatable)")
	flags.StringVar(&f.gateway, "gateway", "", "of the machines: an address (default with --nat or --host-gateway: the first of a CIDR range)")
	flags.StringVar(&f.netmask, "netmask", "", "255.255.255.0 or 24 (default: of the CIDR range, else of the smallest network up to /24)")
	flags.StringSliceVar(&f.dns, "dns", nil, "name servers of the machines")
	flags.BoolVar(&f.hostGateway, "host-gateway", false, "the host itself takes the gateway's address on the bridge")
	flags.BoolVar(&f.nat, "nat", false, "and masquerades what leaves the network")
	flags.BoolVar(&f.filter, "filter", true, "machines cannot use other addresses than theirs")
	flags.StringVar(&f.driver, "driver", "", "VN_MAD: bridge or fw (default bridge)")
	flags.StringVar(&f.phydev, "phydev", "", "interface of the hosts that goes into the bridge")
	flags.IntVar(&f.mtu, "mtu", 0, "bytes")
	flags.StringVar(&f.cluster, "cluster", "", "cluster, id or name")
	a.completeFlag(cmd, "cluster", cloud.KindCluster)
	return cmd
}

func (f *networkFlags) template(filterGiven bool) (template.Template, error) {
	t, err := f.begin()
	if err != nil {
		return t, err
	}
	plan := addressPlan{wantGateway: f.nat || f.hostGateway}
	if err := plan.read(f.ranges, f.gateway, f.netmask); err != nil {
		return t, err
	}
	setText(&t, "VN_MAD", f.driver, "BRIDGE", f.bridge, "PHYDEV", f.phydev, "DNS", strings.Join(f.dns, " "))
	plan.apply(&t)
	if f.hostGateway {
		t.Set("HOST_GATEWAY", "YES")
	}
	if f.nat {
		t.Set("NAT", "YES")
	}
	if filterGiven {
		t.Set("FILTER", yesNo(f.filter))
	}
	if f.mtu != 0 {
		t.Set("GUEST_MTU", strconv.Itoa(f.mtu))
	}
	return t, f.finish(&t)
}
