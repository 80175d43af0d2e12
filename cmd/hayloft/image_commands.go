package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

var images = resource[api.Image]{
	kind: cloud.KindImage,
	key:  func(i *api.Image) (int, string) { return i.ID, i.Name },
	columns: func(*app) []column[api.Image] {
		return []column[api.Image]{
			{title: "ID", right: true, cell: func(i *api.Image) string { return strconv.Itoa(i.ID) }},
			{title: "NAME", least: 10, cell: func(i *api.Image) string { return i.Name }},
			{title: "DATASTORE", right: true, cell: func(i *api.Image) string { return strconv.Itoa(i.DatastoreID) }},
			{title: "SIZE", right: true, cell: func(i *api.Image) string { return bytesText(i.Size) }},
			{title: "STORED", right: true, cell: func(i *api.Image) string { return bytesText(i.StoredBytes) }},
			{title: "TYPE", cell: func(i *api.Image) string { return i.Type.Short() }},
			{title: "FORMAT", least: 4, cell: func(i *api.Image) string { return i.Format }},
			{title: "PER", cell: func(i *api.Image) string { return yesNo(i.Persistent) }},
			{title: "VMS", right: true, cell: func(i *api.Image) string { return strconv.Itoa(len(i.VMs)) }},
			{title: "STAT", cell: imageStatus, paint: imageColor},
		}
	},
	show: showImage,
}

// imageStatus is the state, with how far an import is.
func imageStatus(i *api.Image) string {
	status := i.State.Short()
	if i.State == cloud.ImageStateReady && len(i.VMs) > 0 {
		status = cloud.ImageStateUsed.Short()
	}
	if i.State == cloud.ImageStateLocked && i.Total > 0 {
		status += fmt.Sprintf(" %d%%", 100*i.Done/i.Total)
	}
	return status
}

func imageColor(i *api.Image) color {
	switch i.State {
	case cloud.ImageStateReady, cloud.ImageStateUsed, cloud.ImageStateUsedPers:
		return green
	case cloud.ImageStateError:
		return red
	}
	return yellow
}

func showImage(p *page, _ *app, i *api.Image) {
	p.section(fmt.Sprintf("Image %d information", i.ID))
	p.field("ID", i.ID)
	p.field("NAME", i.Name)
	p.field("TYPE", i.TypeName)
	p.field("DATASTORE", i.DatastoreID)
	p.field("REGISTERED", momentText(i.RegTime))
	p.field("PERSISTENT", yesNo(i.Persistent))
	p.painted("STATE", i.StateName, imageColor(i))
	if i.State == cloud.ImageStateLocked && i.Total > 0 {
		p.field("IMPORTED", bytesText(i.Done)+" of "+bytesText(i.Total))
	}
	p.painted("ERROR", i.Error, red)
	p.field("MACHINES", idsText(i.VMs))
	showOwner(p, i.Owner)
	showPrefetches(p, i)
	p.section("Content")
	p.field("SIZE", bytesText(i.Size))
	p.field("STORED", bytesText(i.StoredBytes))
	p.field("FORMAT", i.Format)
	p.field("DIGEST", i.Digest)
	p.field("IMPORTED FROM", i.Path)
	p.field("OBJECT", i.Source)
	showClone(p, i)
	if i.SavedFrom != nil {
		text := fmt.Sprintf("vm %d, disk %d", i.SavedFrom.VM, i.SavedFrom.Disk)
		if i.SavedFrom.Moved > 0 {
			text += ", " + bytesText(i.SavedFrom.Moved) + " moved"
		}
		p.field("SAVED FROM", text)
	}
	p.template("Template", i.Template)
}

func newImageCommand(a *app) *cobra.Command {
	cmd := group("image", "Images: disks, archives, kernels that machines are made from",
		"  hayloft image create --name tiny --path /images/tiny.img\n  hayloft image list")
	cmd.AddCommand(
		images.listCommand(a, "hayloft image list -o json", nil),
		images.showCommand(a, "hayloft image show tiny"),
		newImageCreateCommand(a), newImageDeleteCommand(a), newImageUpdateCommand(a),
		newPersistentCommand(a, "persistent", "Make unused images persistent: their one machine writes to them", true),
		newPersistentCommand(a, "nonpersistent", "Make unused images immutable: machines write to overlays", false),
		newImageCloneCommand(a), newImageFlattenCommand(a),
		newImagePrefetchCommand(a), newImagePrefetchesCommand(a), newImageReleaseCommand(a),
	)
	return cmd
}

// imageFlags are the flags of `hayloft image create`.
type imageFlags struct {
	input
	path, source, kind, datastore, size, digest, form, prefix string
	persistent, noWait                                        bool
}

func newImageCreateCommand(a *app) *cobra.Command {
	f := imageFlags{input: input{app: a}}
	cmd := one("create", "Register an image and take its content in",
		`hayloft image create --name tiny --path /images/tiny.qcow2 --digest sha256:3a7bd3e2...
  hayloft image create --name data --size 10G --type DATABLOCK --persistent
  hayloft image create --name debian --source debian-12.img -d golden-web
  hayloft image create --name vmlinuz --type KERNEL --path /boot/vmlinuz --datastore files`,
		a.remote(func(ctx context.Context, c *client.Client, _ []string) error {
			t, err := f.template()
			if err != nil {
				return err
			}
			id, err := c.CreateImage(ctx, t.String(), f.datastore)
			if err != nil {
				return err
			}
			if err := a.created(cloud.KindImage, id); err != nil || f.noWait {
				return err
			}
			return a.waitImage(ctx, c, id)
		}))
	f.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.path, "path", "", "file or URL, which the server reads")
	flags.StringVar(&f.source, "source", "", "object that is in the datastore already, with its index NAME.idx beside it: registered as it is")
	flags.StringVar(&f.kind, "type", "", "OS, CDROM, DATABLOCK, KERNEL, RAMDISK or CONTEXT (default OS)")
	flags.StringVarP(&f.datastore, "datastore", "d", "", "datastore, id or name (default by type)")
	flags.BoolVar(&f.persistent, "persistent", false, "its one machine writes to it")
	flags.StringVar(&f.size, "size", "", "of an empty image, or to enlarge to: MB, or with M, G or T")
	flags.StringVar(&f.digest, "digest", "", "that the file must have, ALGORITHM:HEX")
	flags.StringVar(&f.form, "format", "", "raw, qcow2, vmdk, tar, tar.gz, tar.zst, squashfs (default: found out)")
	flags.StringVar(&f.prefix, "prefix", "", "DEV_PREFIX: vd, sd or hd")
	flags.BoolVar(&f.noWait, "no-wait", false, "do not wait until its content is taken in")
	must(cmd.MarkFlagFilename("path"))
	completeWords(cmd, "type", "OS", "CDROM", "DATABLOCK", "KERNEL", "RAMDISK", "CONTEXT")
	completeWords(cmd, "format", "raw", "qcow2", "vmdk", "tar", "tar.gz", "tar.zst", "squashfs")
	a.completeFlag(cmd, "datastore", cloud.KindDatastore)
	return cmd
}

// template is what the flags say. A path of a file is made absolute; without a name, the file's is taken.
func (f *imageFlags) template() (template.Template, error) {
	t, err := f.begin()
	if err != nil {
		return t, err
	}
	path := f.path
	if path != "" && !strings.Contains(path, "://") {
		if path, err = filepath.Abs(path); err != nil {
			return t, err
		}
	}
	setText(&t, "PATH", path, "SOURCE", f.source, "TYPE", strings.ToUpper(f.kind), "DIGEST", f.digest, "FORMAT", f.form, "DEV_PREFIX", f.prefix)
	if f.persistent {
		t.Set("PERSISTENT", "YES")
	}
	if f.size != "" {
		mb, err := megabytes(f.size)
		if err != nil {
			return t, err
		}
		t.Set("SIZE", strconv.Itoa(mb))
	}
	if from := path + f.source; from != "" && f.name == "" && !t.Has("NAME") {
		base, _, _ := strings.Cut(filepath.Base(from), ".")
		t.Set("NAME", base)
	}
	return t, f.finish(&t)
}

// waitImage waits until an image's content has been taken in, showing bytes and rate.
func (a *app) waitImage(ctx context.Context, c *client.Client, id int) error {
	m := a.newMeter()
	defer m.close()
	rate := rate{now: a.now}
	image, err := c.WaitImage(ctx, id, func(i api.Image, gone bool) (bool, error) {
		switch {
		case gone:
			return false, fault.Errorf(fault.NotFound, "image %d was deleted before its content was taken in", id)
		case i.State == cloud.ImageStateError:
			return false, fault.Errorf(fault.ParseClass(i.ErrorClass), "image %d (%s): %s", id, i.Name, i.Error)
		case i.State != cloud.ImageStateLocked && i.State != cloud.ImageStateInit:
			return true, nil
		}
		text := "image " + i.Name + ": waiting to begin"
		if i.Total > 0 || i.Done > 0 {
			text = "image " + i.Name + ": " + rate.text(i.Done, i.Total)
		}
		m.update(text, stage{"import", i.Done, i.Total})
		return false, nil
	})
	if err != nil {
		return err
	}
	m.end(fmt.Sprintf("image %s: %s, %s", image.Name, bytesText(image.Size), strings.ToLower(image.StateName)))
	return nil
}

func newImageDeleteCommand(a *app) *cobra.Command {
	wait := false
	cmd := one("delete IMAGE...", "Delete images that no machine uses", "hayloft image delete tiny --wait",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			return forEach(args, func(ref string) error {
				image, err := c.Image(ctx, ref)
				if err != nil {
					return err
				}
				if err := c.Delete(ctx, cloud.KindImage, strconv.Itoa(image.ID)); err != nil || !wait {
					return err
				}
				m := a.newMeter()
				defer m.close()
				_, err = c.WaitImage(ctx, image.ID, func(i api.Image, gone bool) (bool, error) {
					if !gone && i.State == cloud.ImageStateError {
						return false, fault.Errorf(fault.ParseClass(i.ErrorClass), "image %d (%s): %s", i.ID, i.Name, i.Error)
					}
					m.update("image " + image.Name + ": deleting its content")
					return gone, nil
				})
				return err
			})
		}))
	cmd.Aliases = []string{"rm"}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the content is gone too")
	cmd.ValidArgsFunction = a.complete(cloud.KindImage, true)
	return cmd
}

func newImageUpdateCommand(a *app) *cobra.Command {
	return a.updateCommand(cloud.KindImage, "Change an image's attributes, such as how its disks are cached",
		"hayloft image update data --set 'CACHE_MODE = BACK' --set 'CACHE_SIZE = 4096'")
}

func newPersistentCommand(a *app, use, short string, persistent bool) *cobra.Command {
	cmd := one(use+" IMAGE...", short, "hayloft image "+use+" data",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			return forEach(args, func(ref string) error { return c.SetPersistent(ctx, ref, persistent) })
		}))
	cmd.ValidArgsFunction = a.complete(cloud.KindImage, true)
	return cmd
}

// sshKeys reads public keys, one or more a file.
func sshKeys(paths []string) (string, error) {
	var keys []string
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if strings.Contains(line, "PRIVATE KEY") {
				return "", fault.Errorf(fault.Invalid, "%s is a private key: give the public one, %s.pub", path, path)
			}
			keys = append(keys, line)
		}
	}
	if len(paths) > 0 && len(keys) == 0 {
		return "", fault.Errorf(fault.Invalid, "no SSH key in %s", strings.Join(paths, ", "))
	}
	return strings.Join(keys, "\n"), nil
}
