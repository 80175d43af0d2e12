package operation

import (
	"context"
	"maps"
	"slices"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/store"
)

func contains(ids []int, id int) bool { return slices.Contains(ids, id) }

// CreateHost makes a host's record; its agent enrolls with a token afterwards.
func (o *Operations) CreateHost(ctx context.Context, name string, cluster int) (int, error) {
	if cluster < 0 {
		cluster = cloud.DefaultCluster
	}
	if _, err := o.Inv.Cluster(cluster); err != nil {
		return 0, err
	}
	if strings.ContainsAny(name, " \t") {
		return 0, fault.Errorf(fault.Invalid, "host name %q has white space", name)
	}
	return create(ctx, o, creation[cloud.Host]{
		table: o.Inv.Hosts, name: name,
		build: func(id int) (cloud.Host, []store.Cond, []store.Op, error) {
			return cloud.Host{ID: id, Name: name, State: cloud.HostStateInit, ClusterID: cluster}, nil, nil, nil
		},
	})
}

// DeleteHost deletes a host without machines.
func (o *Operations) DeleteHost(ctx context.Context, id int) error {
	return remove(ctx, o, o.Inv.Hosts, id, func(h *cloud.Host) string { return h.Name }, nil, func(h *cloud.Host) error {
		if vms := o.Inv.VMsOnHost(id); len(vms) > 0 {
			return fault.Errorf(fault.Busy, "host %s has %d machines, vm %d among them", h.Name, len(vms), vms[0].ID)
		}
		return nil
	}, func() []store.Op {
		return o.Inv.DropPrefetches(func(p cloud.Prefetch) bool { return p.HostID == id })
	})
}

// EnableHost sets whether new machines may be placed on the host: "enable", "disable" or "offline".
func (o *Operations) EnableHost(ctx context.Context, id int, status string) error {
	states := map[string]cloud.HostState{"disable": cloud.HostStateDisabled, "offline": cloud.HostStateOffline}
	_, revision, err := o.Inv.Hosts.Update(ctx, id, func(h *cloud.Host) error {
		if state, ok := states[status]; ok {
			h.State = state
			return nil
		}
		if status != "enable" {
			return fault.Errorf(fault.Invalid, "host status %q is none of enable, disable, offline", status)
		}
		h.State = cloud.HostStateMonitored
		if h.Session == "" {
			h.State = cloud.HostStateInit
		}
		return nil
	})
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}

// UpdateHost sets or merges the administrator's attributes of a host.
func (o *Operations) UpdateHost(ctx context.Context, id int, t template.Template, merge bool) error {
	_, revision, err := o.Inv.Hosts.Update(ctx, id, func(h *cloud.Host) error {
		attributes := map[string]string{}
		if merge {
			maps.Copy(attributes, h.Attributes)
		}
		for _, a := range t.Attributes {
			attributes[a.Name], _ = t.Get(a.Name)
		}
		h.Attributes = attributes
		return nil
	})
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}
