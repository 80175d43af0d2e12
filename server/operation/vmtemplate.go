package operation

import (
	"context"

	"hayloft/cloud"
	"hayloft/cloud/template"
	"hayloft/store"
)

// CreateTemplate registers a VM template. What it names is looked up when a machine is made from it.
func (o *Operations) CreateTemplate(ctx context.Context, t template.Template) (int, error) {
	name, err := o.name(t, "VM")
	if err != nil {
		return 0, err
	}
	return create(ctx, o, creation[cloud.VMTemplate]{
		table: o.Inv.Templates, name: name,
		build: func(id int) (cloud.VMTemplate, []store.Cond, []store.Op, error) {
			return cloud.VMTemplate{ID: id, Name: name, RegTime: o.Now().Unix(), Template: t}, nil, nil, nil
		},
	})
}

// UpdateTemplate replaces a VM template, or merges into it. The name stays.
func (o *Operations) UpdateTemplate(ctx context.Context, id int, t template.Template, merge bool) error {
	_, revision, err := o.Inv.Templates.Update(ctx, id, func(v *cloud.VMTemplate) error {
		next := t.Clone()
		if merge {
			next = v.Template.Clone()
			next.Merge(t)
		}
		next.Set("NAME", v.Name)
		v.Template = next
		return nil
	})
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}

// DeleteTemplate deletes a VM template; machines made from it stay.
func (o *Operations) DeleteTemplate(ctx context.Context, id int) error {
	return remove(ctx, o, o.Inv.Templates, id, func(t *cloud.VMTemplate) string { return t.Name },
		func(t *cloud.VMTemplate) int { return t.UID }, func(*cloud.VMTemplate) error { return nil })
}
