package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"hayloft/server/api/client"
)

// version is that of this source.
const version = "0.1.0"

func newVersionCommand(a *app) *cobra.Command {
	local := false
	cmd := one("version", "Tell the versions of this program and of the server", "hayloft version",
		a.remote(func(ctx context.Context, c *client.Client, _ []string) error {
			versions := struct {
				Client  string `json:"client"`
				Server  string `json:"server,omitempty"`
				Cluster string `json:"cluster,omitempty"`
			}{Client: version}
			if !local {
				server, err := c.Version(ctx)
				if err != nil {
					if !a.structured() {
						fmt.Fprintln(a.stdout, "client", version)
					}
					return err
				}
				versions.Server, versions.Cluster = server.Version, server.Cluster
			}
			if a.structured() {
				return a.print(versions)
			}
			text := "client " + versions.Client + "\n"
			if !local {
				text += "server " + printable(versions.Server) + ", installation " + printable(versions.Cluster) + "\n"
			}
			_, err := fmt.Fprint(a.stdout, text)
			return err
		}))
	cmd.Flags().BoolVar(&local, "client", false, "this program's only: asks no server")
	return cmd
}
