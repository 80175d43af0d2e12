package operation

import (
	"context"
	"net/netip"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/network/address"
	"hayloft/server/inventory"
	"hayloft/store"
)

// CreateNetwork makes a virtual network from a template: NAME, VN_MAD (bridge, or fw for one with
// anti-spoofing as default), BRIDGE, PHYDEV, AR vectors, GATEWAY, NETWORK_MASK, DNS..., and what is
// Hayloft's own: HOST_GATEWAY=YES (the host takes GATEWAY on the bridge), NAT=YES (and masquerades), and
// FILTER=NO (no anti-spoofing).
func (o *Operations) CreateNetwork(ctx context.Context, t template.Template, cluster int) (int, error) {
	name, err := o.name(t, "network")
	if err != nil {
		return 0, err
	}
	if cluster < 0 {
		cluster = cloud.DefaultCluster
	}
	if _, err := o.Inv.Cluster(cluster); err != nil {
		return 0, err
	}
	n := cloud.Network{Name: name, Clusters: []int{cluster}, Template: t}
	if err := networkOf(t, &n); err != nil {
		return 0, fault.Errorf(fault.ClassOf(err), "network %s: %w", name, err)
	}
	return create(ctx, o, creation[cloud.Network]{
		table: o.Inv.Networks, owner: n.UID, name: name,
		build: func(id int) (cloud.Network, []store.Cond, []store.Op, error) {
			n.ID = id
			if n.Bridge == "" {
				n.Bridge = "onebr" + string(idText(id))
			}
			return n, nil, nil, nil
		},
	})
}

func networkOf(t template.Template, n *cloud.Network) error {
	n.VNMAD, _ = t.Get("VN_MAD")
	switch n.VNMAD {
	case "":
		n.VNMAD = "bridge"
	case "bridge", "fw", "dummy":
	default:
		return fault.Errorf(fault.Unsupported, "VN_MAD %q is not supported; bridge and fw are", n.VNMAD)
	}
	n.Filter = true
	n.Bridge, _ = t.Get("BRIDGE")
	n.PhyDev, _ = t.Get("PHYDEV")
	for _, name := range []string{n.Bridge, n.PhyDev} {
		if len(name) > 15 || strings.ContainsAny(name, "/ \t\n:") {
			return fault.Errorf(fault.Invalid, "%q is no name of an interface", name)
		}
	}
	var err error
	for name, flag := range map[string]*bool{"NAT": &n.NAT, "HOST_GATEWAY": &n.Host, "FILTER": &n.Filter} {
		value, present, e := t.Bool(name)
		if e != nil {
			err = e
		} else if present {
			*flag = value
		}
	}
	if err != nil {
		return err
	}
	n.Host = n.Host || n.NAT
	for _, name := range []string{"GUEST_MTU", "MTU"} {
		if n.MTU, _, err = t.Int(name); err != nil || n.MTU < 0 || n.MTU > 65535 {
			return fault.Errorf(fault.Invalid, "%s: want bytes", name)
		}
	}
	subnet, err := address.ParseSubnet(singles(t))
	if err != nil {
		return err
	}
	if n.Host && !subnet.Host().IsValid() {
		return fault.Errorf(fault.Invalid, "HOST_GATEWAY and NAT need GATEWAY and NETWORK_MASK")
	}
	return addRanges(t.GetAll("AR"), n)
}

func addRanges(vectors []template.Vector, n *cloud.Network) error {
	var ranges []address.Range
	for _, v := range vectors {
		r, err := address.Parse(len(n.Ranges), attributes(v), address.Defaults{})
		if err != nil {
			return err
		}
		for _, other := range ranges {
			if what := address.Overlap(other, r); what != "" {
				return fault.Errorf(fault.Invalid, "AR %d and AR %d overlap in %s", other.ID, r.ID, what)
			}
		}
		ranges = append(ranges, r)
		n.Ranges = append(n.Ranges, cloud.AddressRange{ID: r.ID, Attributes: r.Attributes()})
	}
	return nil
}

func attributes(v template.Vector) map[string]string {
	m := make(map[string]string, len(v))
	for _, p := range v {
		m[p.Name] = p.Value
	}
	return m
}

// singles are a template's single values by name.
func singles(t template.Template) map[string]string {
	m := map[string]string{}
	for _, a := range t.Attributes {
		if !a.IsVector {
			if _, ok := m[a.Name]; !ok {
				m[a.Name] = a.Value
			}
		}
	}
	return m
}

// DeleteNetwork deletes a network without leases.
func (o *Operations) DeleteNetwork(ctx context.Context, id int) error {
	return remove(ctx, o, o.Inv.Networks, id, func(n *cloud.Network) string { return n.Name },
		func(n *cloud.Network) int { return n.UID }, func(n *cloud.Network) error {
			if leases := o.Inv.Leases(id); len(leases) > 0 {
				return fault.Errorf(fault.Busy, "network %s has %d addresses in use, one by vm %d", n.Name, len(leases), leases[0].VM)
			}
			return nil
		})
}

// leaser hands out addresses of networks within one request, so that machines made together get
// different ones.
type leaser struct {
	inv    *inventory.Inventory
	states map[int]*leaseState
}

type leaseState struct {
	network cloud.Network
	subnet  address.Subnet
	ranges  []address.Range
	used    []*address.Indices
}

func (l *leaser) state(id int) (*leaseState, error) {
	if s := l.states[id]; s != nil {
		return s, nil
	}
	n, err := l.inv.Network(id)
	if err != nil {
		return nil, err
	}
	s := &leaseState{network: n}
	if s.subnet, err = address.ParseSubnet(singles(n.Template)); err != nil {
		return nil, err
	}
	for _, ar := range n.Ranges {
		r, err := address.Parse(ar.ID, ar.Attributes, address.Defaults{})
		if err != nil {
			return nil, err
		}
		s.ranges = append(s.ranges, r)
		s.used = append(s.used, &address.Indices{})
	}
	for _, lease := range l.inv.Leases(id) {
		for i, r := range s.ranges {
			if r.ID == lease.Range {
				s.used[i].Add(lease.Index)
			}
		}
	}
	if l.states == nil {
		l.states = map[int]*leaseState{}
	}
	l.states[id] = s
	return s, nil
}

// take completes a NIC with an address: the wanted one, or the next free.
func (l *leaser) take(nic *cloud.NIC, wanted string) error {
	s, err := l.state(nic.NetworkID)
	if err != nil {
		return err
	}
	i, index, err := s.pick(wanted)
	if err != nil {
		return fault.Errorf(fault.ClassOf(err), "network %s: %w", s.network.Name, err)
	}
	s.used[i].Add(index)
	addresses, err := s.ranges[i].Nth(index)
	if err != nil {
		return err
	}
	nic.Network, nic.Range, nic.Index, nic.MAC = s.network.Name, s.ranges[i].ID, index, addresses.MAC.String()
	nic.Filter = s.network.Filter
	if addresses.IP.IsValid() {
		nic.IP = addresses.IP.String()
		if p := s.subnet.Prefix(addresses.IP); p.IsValid() {
			nic.Prefix = p.Bits()
		} else {
			nic.Prefix = 24 // what guests assume where no mask is given
		}
		nic.Gateway, _ = s.network.Template.Get("GATEWAY")
	}
	for _, ip6 := range []netip.Addr{addresses.IP6, addresses.Global, addresses.ULA} {
		if ip6.IsValid() {
			nic.IP6 = ip6.String()
			break
		}
	}
	return nil
}

func (s *leaseState) pick(wanted string) (at, index int, err error) {
	if len(s.ranges) == 0 {
		return 0, 0, fault.Errorf(fault.OutOfSpace, "it has no address range")
	}
	if wanted == "" {
		for i, r := range s.ranges {
			if index, err = r.NextFree(s.used[i], 0, s.subnet); err == nil {
				return i, index, nil
			}
		}
		return 0, 0, fault.Errorf(fault.OutOfSpace, "no address is free")
	}
	ip, err := netip.ParseAddr(wanted)
	if err != nil {
		return 0, 0, fault.Errorf(fault.Invalid, "IP %q is no address", wanted)
	}
	for i, r := range s.ranges {
		if index, ok := r.IndexOfIP(ip); ok {
			if s.used[i].Has(index) {
				return 0, 0, fault.Errorf(fault.Exists, "address %s is in use", ip)
			}
			return i, index, nil
		}
	}
	return 0, 0, fault.Errorf(fault.NotFound, "address %s is in none of its ranges", ip)
}
