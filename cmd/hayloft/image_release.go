package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

func newImageReleaseCommand(a *app) *cobra.Command {
	acceptStale := false
	cmd := one("release IMAGE", "Take a persistent image from a machine whose host never comes back",
		"hayloft image release data\n  hayloft image release data --accept-stale",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			return c.ReleaseImage(ctx, args[0], acceptStale)
		}))
	cmd.Long = `Take a persistent image from a machine whose host never comes back.

While a machine uses a persistent image, its repository keeps a mark beside it that names host and machine, and whether
that host has writes which the image has not got yet (CACHE_MODE BACK and OFFLINE). Nobody else can open it. When
the host is lost for good, release removes the mark, so that another machine can have the image. It is refused while
the server takes the machine to be alive, and while writes are missing, unless --accept-stale gives these up: the
image is then as of some earlier moment, and the lost host can never write to it again.`
	cmd.Flags().BoolVar(&acceptStale, "accept-stale", false, "also when the host has writes that the image has not: they are lost")
	cmd.ValidArgsFunction = a.complete(cloud.KindImage, false)
	return cmd
}

// showOwner tells who has a persistent image in use, as its repository says.
func showOwner(p *page, o *api.Owner) {
	switch {
	case o == nil:
	case o.Error != "":
		p.painted("OWNER", "not known: "+o.Error, red)
	case o.Undrained:
		p.painted("OWNER", fmt.Sprintf("vm %d on host %s, generation %d, with writes that are not in the image yet", o.Machine, o.Host, o.Generation), yellow)
	default:
		p.field("OWNER", fmt.Sprintf("vm %d on host %s, generation %d", o.Machine, o.Host, o.Generation))
	}
}
