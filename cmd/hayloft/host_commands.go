package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

var hosts = resource[api.Host]{
	kind: cloud.KindHost,
	key:  func(h *api.Host) (int, string) { return h.ID, h.Name },
	columns: func(*app) []column[api.Host] {
		return []column[api.Host]{
			{title: "ID", right: true, cell: func(h *api.Host) string { return strconv.Itoa(h.ID) }},
			{title: "NAME", least: 8, cell: func(h *api.Host) string { return h.Name }},
			{title: "CLUSTER", right: true, cell: func(h *api.Host) string { return strconv.Itoa(h.ClusterID) }},
			{title: "VMS", right: true, cell: func(h *api.Host) string { return strconv.Itoa(len(h.VMs)) }},
			{title: "CPU", right: true, cell: func(h *api.Host) string { return shareText(h.UsedCPU, h.MaxCPU, numberText) }},
			{title: "MEM", right: true, cell: hostMemory},
			{title: "HYPERVISORS", least: 8, cell: hypervisorNames},
			{title: "STAT", cell: func(h *api.Host) string { return h.State.Short() }, paint: hostColor},
		}
	},
	show: showHost,
}

func hostMemory(h *api.Host) string {
	return shareText(float64(h.UsedMemoryMB), float64(h.MaxMemoryMB), func(mb float64) string { return megabytesText(int(mb)) })
}

func hypervisorNames(h *api.Host) string {
	var names []string
	for _, hv := range h.Hypervisor {
		if hv.Error == "" {
			names = append(names, strings.TrimSuffix(hv.Name+"/"+hv.Accelerator, "/"))
		}
	}
	return strings.Join(names, ",")
}

func hostColor(h *api.Host) color {
	switch h.State {
	case cloud.HostStateMonitored:
		return green
	case cloud.HostStateError, cloud.HostStateOffline:
		return red
	}
	return yellow
}

func showHost(p *page, _ *app, h *api.Host) {
	p.section(fmt.Sprintf("Host %d information", h.ID))
	p.field("ID", h.ID)
	p.field("NAME", h.Name)
	p.field("CLUSTER", h.ClusterID)
	p.painted("STATE", h.StateName, hostColor(h))
	p.field("AGENT CONNECTED", yesNo(h.Connected))
	p.field("AGENT VERSION", h.Version)
	p.painted("ERROR", h.Error, red)
	p.section("Capacity")
	p.field("CPU", shareText(h.UsedCPU, h.MaxCPU, numberText)+fmt.Sprintf(", %s cores", numberText(h.CPU)))
	p.field("MEMORY", hostMemory(h)+", "+megabytesText(h.MemoryMB)+" physical")
	p.field("LOCAL STORE", shareText(float64(h.UsedDiskMB), float64(h.DiskMB), func(mb float64) string { return megabytesText(int(mb)) }))
	p.field("LS_MAD", h.Storage.LSMad)
	p.field("LS_PATH", h.Storage.LSPath)
	if h.Storage.LSMaxMB > 0 {
		p.field("LS_MAX", megabytesText(h.Storage.LSMaxMB))
	}
	p.field("LC_MAD", strings.TrimSpace(h.Storage.LCMad+" "+strings.Join(h.Storage.LCModes, " ")))
	p.field("IMAGES HELD", len(h.Bases))
	if len(h.Held) > 0 {
		p.section("Images held")
		rows(p, h.Held,
			column[api.Held]{title: "IMAGE", least: 8, cell: heldName},
			column[api.Held]{title: "PRESENT", right: true, cell: func(b *api.Held) string { return heldBytes(b, b.Present) }},
			column[api.Held]{title: "TOTAL", right: true, cell: func(b *api.Held) string { return heldBytes(b, b.Total) }},
			column[api.Held]{title: "WHOLE", cell: func(b *api.Held) string { return yesNo(b.Complete) }},
			column[api.Held]{title: "DIGEST", least: 16, cell: func(b *api.Held) string { return b.Digest }})
	}
	p.section("Hypervisors")
	for _, hv := range h.Hypervisor {
		text := strings.TrimSpace(hv.Version)
		if hv.Accelerator != "" {
			text += ", accelerator " + hv.Accelerator
		}
		if len(hv.Chipsets) > 0 {
			text += ", chipsets " + strings.Join(hv.Chipsets, " ")
		}
		for _, note := range hv.Notes {
			text += "\n" + note
		}
		p.field(strings.ToUpper(hv.Name), strings.TrimPrefix(text, ", "))
		if hv.Error != "" {
			p.painted(strings.ToUpper(hv.Name)+" ERROR", hv.Error, red)
		}
	}
	if len(h.Attributes) > 0 {
		p.section("Attributes")
		for _, name := range slices.Sorted(maps.Keys(h.Attributes)) {
			p.field(name, h.Attributes[name])
		}
	}
	p.section("Machines")
	p.field("VMS", idsText(h.VMs))
	p.painted("ORPHANS", idsText(h.Orphans), yellow)
}

func heldName(b *api.Held) string {
	if b.Names == "" {
		return "(deleted)"
	}
	return b.Names
}

func heldBytes(b *api.Held, n int64) string {
	if b.Total == 0 {
		return "-"
	}
	return bytesText(n)
}

func newHostCommand(a *app) *cobra.Command {
	cmd := group("host", "Hosts: machines that run an agent", "  hayloft host create node-2\n  hayloft host show node-2")
	cmd.AddCommand(
		hosts.listCommand(a, "hayloft host list --watch", nil),
		hosts.showCommand(a, "hayloft host show node-1"),
		hosts.deleteCommand(a, "hayloft host delete node-2"),
		newHostCreateCommand(a), newHostTokenCommand(a), newHostUpdateCommand(a),
		newHostStatusCommand(a, "enable", "Let new machines be placed on hosts"),
		newHostStatusCommand(a, "disable", "Place no new machines on hosts; those there go on"),
		newHostStatusCommand(a, "offline", "Take hosts out of use"),
	)
	return cmd
}

func newHostCreateCommand(a *app) *cobra.Command {
	cluster := ""
	cmd := one("create NAME", "Make a host's record, and the token that its agent joins with", "hayloft host create node-2",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			host, err := c.CreateHost(ctx, args[0], cluster)
			if err != nil {
				return err
			}
			return a.joining(host, args[0])
		}))
	cmd.Flags().StringVar(&cluster, "cluster", "", "cluster, id or name")
	a.completeFlag(cmd, "cluster", cloud.KindCluster)
	return cmd
}

func newHostTokenCommand(a *app) *cobra.Command {
	cmd := one("token HOST", "Make a new token for a host's agent to join with", "hayloft host token node-2",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			host, err := c.HostToken(ctx, args[0])
			if err != nil {
				return err
			}
			name := args[0]
			if _, err := strconv.Atoi(name); err == nil {
				record, err := c.Host(ctx, name)
				if err != nil {
					return err
				}
				name = record.Name
			}
			return a.joining(host, name)
		}))
	cmd.ValidArgsFunction = a.complete(cloud.KindHost, false)
	return cmd
}

// joining tells how a host joins.
func (a *app) joining(host api.CreatedHost, name string) error {
	switch {
	case a.structured():
		return a.print(host)
	case a.output != "":
		return a.created(cloud.KindHost, host.ID)
	case a.quiet:
		_, err := fmt.Fprintln(a.stdout, host.Token)
		return err
	}
	_, err := fmt.Fprintf(a.stdout, `ID: %d
To join, run on the host, within a day (the token is good once):
  hayloft agent --server ADDRESS-OF-THE-SERVER --host %s --token %s
`, host.ID, printable(name), printable(host.Token))
	return err
}

func newHostStatusCommand(a *app, status, short string) *cobra.Command {
	cmd := one(status+" HOST...", short, "hayloft host "+status+" node-2",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			return forEach(args, func(ref string) error { return c.SetHostStatus(ctx, ref, status) })
		}))
	cmd.ValidArgsFunction = a.complete(cloud.KindHost, true)
	return cmd
}

func newHostUpdateCommand(a *app) *cobra.Command {
	return a.updateCommand(cloud.KindHost, "Change a host's attributes", "hayloft host update node-1 --set 'RESERVED_MEM = 2048'")
}

// updateCommand changes what a host or template says.
func (a *app) updateCommand(kind, short, example string) *cobra.Command {
	var file string
	var set []string
	replace := false
	cmd := &cobra.Command{Use: "update " + placeholder(kind), Short: short, Example: "  " + example, Args: positional}
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		if file == "" && len(set) == 0 {
			return usageError(cmd, "nothing to change: give --set or --file")
		}
		t, err := a.templateFile(file)
		if err != nil {
			return err
		}
		if err := merge(&t, set); err != nil {
			return err
		}
		return c.Update(ctx, kind, args[0], api.Update{Template: t.String(), Merge: !replace})
	})
	cmd.Flags().StringVarP(&file, "file", "f", "", "template with what changes, - for standard input")
	cmd.Flags().StringArrayVar(&set, "set", nil, "what changes, as in a template: 'NAME = value' (repeatable)")
	cmd.Flags().BoolVar(&replace, "replace", false, "drop all that is not given, instead of keeping it")
	cmd.ValidArgsFunction = a.complete(kind, false)
	return cmd
}
