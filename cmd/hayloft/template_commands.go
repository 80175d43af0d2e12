package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

var templates = resource[api.Template]{
	kind: cloud.KindTemplate,
	key:  func(t *api.Template) (int, string) { return t.ID, t.Name },
	columns: func(*app) []column[api.Template] {
		single := func(name string) func(*api.Template) string {
			return func(t *api.Template) string { value, _ := t.Template.Get(name); return value }
		}
		return []column[api.Template]{
			{title: "ID", right: true, cell: func(t *api.Template) string { return strconv.Itoa(t.ID) }},
			{title: "NAME", least: 10, cell: func(t *api.Template) string { return t.Name }},
			{title: "CPU", right: true, cell: single("CPU")},
			{title: "MEM", right: true, cell: templateMemory},
			{title: "IMAGES", least: 8, cell: templateImages},
			{title: "REGTIME", cell: func(t *api.Template) string { return momentText(t.RegTime) }},
		}
	},
	show: func(p *page, _ *app, t *api.Template) {
		p.section(fmt.Sprintf("Template %d information", t.ID))
		p.field("ID", t.ID)
		p.field("NAME", t.Name)
		p.field("REGISTERED", momentText(t.RegTime))
		p.section("Template contents")
		p.lines(strings.TrimSuffix(printable(t.Text), "\n"))
	},
}

func templateMemory(t *api.Template) string {
	mb, present, err := t.Template.Int("MEMORY")
	if !present || err != nil {
		return ""
	}
	return megabytesText(mb)
}

func templateImages(t *api.Template) string {
	var names []string
	for _, disk := range t.Template.GetAll("DISK") {
		name, ok := disk.Get("IMAGE")
		if !ok {
			name, _ = disk.Get("IMAGE_ID")
		}
		if name != "" {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

func newTemplateCommand(a *app) *cobra.Command {
	cmd := group("template", "VM templates: what machines are made from",
		"  hayloft template create --file web.tmpl\n  hayloft template instantiate web --count 3")
	instantiate := newVMCreateCommand(a)
	instantiate.Use, instantiate.Short = "instantiate TEMPLATE", "Make machines from a template: the same as hayloft vm create"
	instantiate.Example = "  hayloft template instantiate web --count 3 --wait"
	cmd.AddCommand(
		templates.listCommand(a, "hayloft template list", nil),
		templates.showCommand(a, "hayloft template show web"),
		templates.deleteCommand(a, "hayloft template delete web"),
		newTemplateCreateCommand(a),
		a.updateCommand(cloud.KindTemplate, "Change a VM template", "hayloft template update web --set 'MEMORY = 1024'"),
		instantiate,
	)
	return cmd
}

func newTemplateCreateCommand(a *app) *cobra.Command {
	in := input{app: a}
	machine := machineFlags{app: a}
	cmd := one("create", "Register a VM template",
		"hayloft template create --file web.tmpl\n  hayloft template create --name web --image tiny --network lan --cpu 0.5 --memory 128 --ssh-key ~/.ssh/id_ed25519.pub\n"+
			"  echo 'NAME = empty CPU = 1 MEMORY = 64' | hayloft template create --file -", nil)
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, _ []string) error {
		t, err := in.begin()
		if err != nil {
			return err
		}
		if err := machine.apply(&t, in.file == ""); err != nil {
			return err
		}
		if err := in.finish(&t); err != nil {
			return err
		}
		if !t.Has("NAME") {
			return usageError(cmd, "the template has no NAME: give --name")
		}
		id, err := c.CreateTemplate(ctx, t.String())
		if err != nil {
			return err
		}
		return a.created(cloud.KindTemplate, id)
	})
	in.register(cmd)
	machine.register(cmd)
	return cmd
}
