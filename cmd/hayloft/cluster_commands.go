package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/template"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

var clusters = resource[api.Cluster]{
	kind: cloud.KindCluster,
	key:  func(c *api.Cluster) (int, string) { return c.ID, c.Name },
	columns: func(*app) []column[api.Cluster] {
		return []column[api.Cluster]{
			{title: "ID", right: true, cell: func(c *api.Cluster) string { return strconv.Itoa(c.ID) }},
			{title: "NAME", least: 10, cell: func(c *api.Cluster) string { return c.Name }},
			{title: "HOSTS", right: true, cell: func(c *api.Cluster) string { return strconv.Itoa(len(c.Hosts)) }},
			{title: "NETWORKS", right: true, cell: func(c *api.Cluster) string { return strconv.Itoa(len(c.Networks)) }},
			{title: "DATASTORES", right: true, cell: func(c *api.Cluster) string { return strconv.Itoa(len(c.Datastores)) }},
		}
	},
	show: func(p *page, _ *app, c *api.Cluster) {
		p.section(fmt.Sprintf("Cluster %d information", c.ID))
		p.field("ID", c.ID)
		p.field("NAME", c.Name)
		p.field("HOSTS", idsText(c.Hosts))
		p.field("NETWORKS", idsText(c.Networks))
		p.field("DATASTORES", idsText(c.Datastores))
	},
}

func newClusterCommand(a *app) *cobra.Command {
	cmd := group("cluster", "Clusters: hosts, datastores and networks that go together",
		"  hayloft cluster create rack-2\n  hayloft cluster show default")
	cmd.AddCommand(
		clusters.listCommand(a, "hayloft cluster list", nil),
		clusters.showCommand(a, "hayloft cluster show default"),
		clusters.deleteCommand(a, "hayloft cluster delete rack-2"),
		one("create NAME", "Make a cluster", "hayloft cluster create rack-2",
			a.remote(func(ctx context.Context, c *client.Client, args []string) error {
				var t template.Template
				t.Set("NAME", args[0])
				id, err := c.CreateCluster(ctx, t.String())
				if err != nil {
					return err
				}
				return a.created(cloud.KindCluster, id)
			})),
	)
	return cmd
}
