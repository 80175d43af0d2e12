package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

func newImageCloneCommand(a *app) *cobra.Command {
	var clone api.CloneImage
	persistent, nonpersistent, noWait := false, false, false
	cmd := one("clone IMAGE NAME", "Make a new image with the content of another one",
		"hayloft image clone debian debian-lab\n  hayloft image clone data data-copy --nonpersistent -d fast", nil)
	cmd.Long = `Make a new image with the content of another one.

In one datastore the storage does it, copy-on-write where it can: by reflinks (path on xfs and btrfs), a snapshot of a
logical volume (iscsi, thin or not), a clone of a protected snapshot (rbd). Where it cannot, and between datastores, all
bytes are copied. "hayloft image show" says which (CLONED FROM). Clones can be cloned again, to any depth; an image that others
depend on cannot be deleted until these are flattened or deleted. A persistent image is cloned while nobody uses it.`
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		if persistent || nonpersistent {
			clone.Persistent = &persistent
		}
		clone.Name = args[1]
		id, err := c.CloneImage(ctx, args[0], clone)
		if err != nil {
			return err
		}
		if err := a.created(cloud.KindImage, id); err != nil || noWait {
			return err
		}
		return a.waitImage(ctx, c, id)
	})
	flags := cmd.Flags()
	flags.StringVarP(&clone.Datastore, "datastore", "d", "", "datastore of the clone, id or name (default: that of the image)")
	flags.BoolVar(&persistent, "persistent", false, "the clone is persistent (default: as the image)")
	flags.BoolVar(&nonpersistent, "nonpersistent", false, "the clone is not persistent")
	flags.BoolVar(&noWait, "no-wait", false, "do not wait until it is there")
	cmd.MarkFlagsMutuallyExclusive("persistent", "nonpersistent")
	a.completeFlag(cmd, "datastore", cloud.KindDatastore)
	cmd.ValidArgsFunction = a.complete(cloud.KindImage, false)
	return cmd
}

func newImageFlattenCommand(a *app) *cobra.Command {
	noWait := false
	cmd := one("flatten IMAGE...", "Make clones independent of the images they were cloned from", "hayloft image flatten debian-lab",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			return forEach(args, func(ref string) error {
				if err := c.FlattenImage(ctx, ref); err != nil || noWait {
					return err
				}
				img, err := c.Image(ctx, ref)
				if err != nil {
					return err
				}
				img, err = c.WaitImage(ctx, img.ID, func(i api.Image, gone bool) (bool, error) {
					if gone {
						return false, fault.Errorf(fault.NotFound, "image %s was deleted meanwhile", ref)
					}
					return !i.Flatten, nil
				})
				if err == nil && img.Error != "" {
					err = fault.Errorf(fault.ParseClass(img.ErrorClass), "image %d (%s): %s", img.ID, img.Name, img.Error)
				}
				return err
			})
		}))
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until they are")
	cmd.ValidArgsFunction = a.complete(cloud.KindImage, true)
	return cmd
}

func showClone(p *page, i *api.Image) {
	c := i.ClonedFrom
	if c == nil {
		return
	}
	text := fmt.Sprintf("image %d", c.ImageID)
	if c.Kind != "" {
		text += ", " + c.Kind
	}
	if i.Flatten {
		text += ", being made independent"
	}
	p.field("CLONED FROM", text)
}
