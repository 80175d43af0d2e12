package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/template"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

var datastores = resource[api.Datastore]{
	kind: cloud.KindDatastore,
	key:  func(d *api.Datastore) (int, string) { return d.ID, d.Name },
	columns: func(*app) []column[api.Datastore] {
		return []column[api.Datastore]{
			{title: "ID", right: true, cell: func(d *api.Datastore) string { return strconv.Itoa(d.ID) }},
			{title: "NAME", least: 8, cell: func(d *api.Datastore) string { return d.Name }},
			{title: "SIZE", right: true, cell: func(d *api.Datastore) string { return capacityText(d.TotalMB, d.TotalMB) }},
			{title: "AVAIL", right: true, cell: availText},
			{title: "CLUSTERS", least: 4, cell: func(d *api.Datastore) string { return idsText(d.Clusters) }},
			{title: "IMAGES", right: true, cell: func(d *api.Datastore) string { return strconv.Itoa(len(d.Images)) }},
			{title: "TYPE", cell: func(d *api.Datastore) string { return d.Type.Short() }},
			{title: "DS", cell: func(d *api.Datastore) string { return d.Driver }},
			{title: "PATH", least: 12, cell: func(d *api.Datastore) string { return d.BasePath }},
		}
	},
	show: showDatastore,
}

// capacityText is "-" where a storage does not say how large it is.
func capacityText(mb, total int64) string {
	if total == 0 {
		return "-"
	}
	return bytesText(mb * mebi)
}

func availText(d *api.Datastore) string {
	if d.TotalMB == 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", 100*d.FreeMB/d.TotalMB)
}

func showDatastore(p *page, _ *app, d *api.Datastore) {
	p.section(fmt.Sprintf("Datastore %d information", d.ID))
	p.field("ID", d.ID)
	p.field("NAME", d.Name)
	p.field("TYPE", d.TypeName)
	p.field("DRIVER", d.Driver)
	p.field("BASE PATH", d.BasePath)
	p.field("CLUSTERS", idsText(d.Clusters))
	p.painted("ERROR", d.Error, red)
	p.section("Capacity")
	p.field("TOTAL", capacityText(d.TotalMB, d.TotalMB))
	p.field("FREE", capacityText(d.FreeMB, d.TotalMB))
	p.template("Template", d.Template)
	p.section("Images")
	p.field("IMAGES", idsText(d.Images))
}

func newDatastoreCommand(a *app) *cobra.Command {
	cmd := group("datastore", "Datastores: where images live", "  hayloft datastore list\n  hayloft datastore show default", "ds")
	cmd.AddCommand(
		datastores.listCommand(a, "hayloft datastore list", nil),
		datastores.showCommand(a, "hayloft datastore show default"),
		datastores.deleteCommand(a, "hayloft datastore delete golden"),
		newDatastoreCreateCommand(a),
		a.updateCommand(cloud.KindDatastore, "Change a datastore's attributes, such as how its images are cached",
			"hayloft datastore update golden --set 'CACHE_FILL = NO' --set 'CACHE_MODE = AROUND'"),
	)
	return cmd
}

func newDatastoreCreateCommand(a *app) *cobra.Command {
	in := input{app: a}
	var kind, path, driver, cluster string
	noCheck := false
	cmd := one("create", "Make a datastore", `hayloft datastore create --name golden --type image --path /srv/golden
  hayloft datastore create --name slow --path /srv/nfs --set 'CACHE_MODE = BACK' --set 'CACHE_FILL_RATE = 20'
  hayloft datastore create --name golden-web --driver http --path https://images.example/golden
  hayloft datastore create --name store --driver ssh --path /srv/images --set HOST=images@store`,
		a.remote(func(ctx context.Context, c *client.Client, _ []string) error {
			t, err := in.begin()
			if err != nil {
				return err
			}
			if kind = strings.ToUpper(kind); kind != "" && !strings.HasSuffix(kind, "_DS") {
				kind += "_DS"
			}
			setText(&t, "TYPE", kind, "DS_MAD", driver, "BASE_PATH", path)
			if err := in.finish(&t); err != nil {
				return err
			}
			named, _ := t.Get("DS_MAD")
			if base, _ := t.Get("BASE_PATH"); base != "" && base == path {
				if base, err = basePath(named, base); err != nil {
					return err
				}
				t.Set("BASE_PATH", base)
			}
			id, err := c.CreateDatastore(ctx, t.String(), cluster)
			if err != nil {
				return err
			}
			if err := a.created(cloud.KindDatastore, id); err != nil {
				return err
			}
			a.warnOfMisspelt(named, t)
			if !noCheck {
				a.warnOfStorage(ctx, c, id, a.storagePatience)
			}
			return nil
		}))
	cmd.Long = `Make a datastore.

Attributes that a driver does not know are kept, with a warning when one looks like an option that was misspelt. The server
asks the storage at once: when that cannot be reached or does not let it in, a warning says why, and the datastore is made
all the same.`
	in.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&kind, "type", "", "image, file or system (default image)")
	flags.StringVar(&path, "path", "", "BASE_PATH: a directory; for other drivers a URL, SERVER:/EXPORT, a volume group, a pool")
	flags.StringVar(&driver, "driver", "", "DS_MAD: "+strings.Join(cloud.DatastoreDriverNames(), ", ")+" (default path)")
	flags.StringVar(&cluster, "cluster", "", "cluster, id or name")
	flags.BoolVar(&noCheck, "no-check", false, "do not ask the storage whether it can be reached")
	must(cmd.MarkFlagDirname("path"))
	completeWords(cmd, "type", "image", "file", "system")
	completeWords(cmd, "driver", cloud.DatastoreDriverNames()...)
	a.completeFlag(cmd, "cluster", cloud.KindCluster)
	return cmd
}

// warn says what is not as it should be, though what was asked for is done.
func (a *app) warn(text string, args ...any) {
	fmt.Fprintf(a.stderr, "warning: %s\n", printable(fmt.Sprintf(text, args...)))
}

// warnOfMisspelt names attributes that look like options of the driver and are none.
func (a *app) warnOfMisspelt(name string, t template.Template) {
	driver, err := cloud.LookupDatastoreDriver(name)
	if err != nil {
		return // of a newer server
	}
	for _, attribute := range t.Attributes {
		if meant := driver.Misspelt(attribute.Name); meant != "" {
			a.warn("%s is not an option of %s datastores; did you mean %s? It is kept as an attribute", attribute.Name, driver.Name, meant)
		}
	}
}

// storagePatience is how long the server may take to say whether it reaches a storage; itself it waits for half of that.
const storagePatience = 10 * time.Second

// warnOfStorage asks whether a datastore's storage can be reached.
func (a *app) warnOfStorage(ctx context.Context, c *client.Client, id int, patience time.Duration) {
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d, err := c.Datastore(asking, strconv.Itoa(id))
	switch {
	case ctx.Err() != nil: // interrupted: it is made, and that was said
	case asking.Err() != nil:
		a.warn("datastore %d is made, but within %v nothing was heard of its storage (see \"hayloft datastore show %d\")", id, patience, id)
	case err != nil:
		a.warn("datastore %d is made, but whether its storage can be reached is not known: %v", id, err)
	case d.Error != "":
		a.warn("datastore %d is made, but cannot be used yet: %s", id, d.Error)
	}
}

// basePath makes the path of a directory absolute; what else a driver has for its BASE_PATH stays as it is.
func basePath(driver, path string) (string, error) {
	known, err := cloud.LookupDatastoreDriver(driver)
	switch {
	case err != nil || path == "" || strings.Contains(path, "://"): // the server says what is wrong
		return path, nil
	case driver == "ssh": // a directory of another host
		return path, nil
	case known.Base == cloud.BaseDirectory || known.Base == cloud.BaseAny:
		return filepath.Abs(path)
	}
	return path, nil
}
