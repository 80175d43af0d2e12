package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"hayloft/cloud/fault"
	"hayloft/server/api/client"
)

// resource is how a kind of object is listed and shown.
type resource[T any] struct {
	kind    string // as in package cloud
	columns func(*app) []column[T]
	key     func(*T) (id int, name string)
	show    func(*page, *app, *T)
	list    func(context.Context, *client.Client) ([]T, error) // nil: client.List
}

func (r resource[T]) all(ctx context.Context, c *client.Client) ([]T, error) {
	if r.list != nil {
		return r.list(ctx, c)
	}
	return client.List[T](ctx, c, r.kind)
}

func (r resource[T]) id(item *T) int {
	id, _ := r.key(item)
	return id
}

// label is what -o name and -o id write.
func (r resource[T]) label(a *app, item *T) string {
	id, name := r.key(item)
	if a.output == "id" {
		return strconv.Itoa(id)
	}
	return printable(name)
}

// write writes a list in the format asked for.
func (r resource[T]) write(a *app, items []T) error {
	switch {
	case a.structured():
		if items == nil {
			items = []T{}
		}
		return a.print(items)
	case a.output != "":
		for i := range items {
			if _, err := fmt.Fprintln(a.stdout, r.label(a, &items[i])); err != nil {
				return err
			}
		}
		return nil
	}
	for _, line := range newTable(a.out(), r.columns(a)).lines(items) {
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return err
		}
	}
	return nil
}

func (r resource[T]) sort(items []T) {
	slices.SortFunc(items, func(x, y T) int { return r.id(&x) - r.id(&y) })
}

// filter makes the test that a list's flags ask for.
type filter[T any] func(context.Context, *client.Client) (func(*T) bool, error)

func (r resource[T]) listCommand(a *app, example string, keep filter[T]) *cobra.Command {
	watch := false
	cmd := one("list", "List the "+r.kind+"s", example, a.remote(func(ctx context.Context, c *client.Client, _ []string) error {
		wanted := func(*T) bool { return true }
		if keep != nil {
			var err error
			if wanted, err = keep(ctx, c); err != nil {
				return err
			}
		}
		if watch {
			return watchList(ctx, a, c, r, wanted)
		}
		items, err := r.all(ctx, c)
		if err != nil {
			return err
		}
		items = slices.DeleteFunc(items, func(item T) bool { return !wanted(&item) })
		r.sort(items)
		return r.write(a, items)
	}))
	cmd.Aliases = []string{"ls"}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing what changes: redrawn on a terminal, else a line for each change")
	return cmd
}

func (r resource[T]) showCommand(a *app, example string) *cobra.Command {
	cmd := one("show "+placeholder(r.kind)+"...", "Show all about a "+r.kind, example,
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			var items []T
			for _, ref := range args {
				item, err := client.Get[T](ctx, c, r.kind, ref)
				if err != nil {
					return err
				}
				items = append(items, item)
			}
			return r.present(a, items)
		}))
	cmd.ValidArgsFunction = a.complete(r.kind, true)
	return cmd
}

// present writes objects in their long form.
func (r resource[T]) present(a *app, items []T) error {
	switch {
	case a.structured() && len(items) == 1:
		return a.print(items[0])
	case a.output != "":
		return r.write(a, items)
	}
	for i := range items {
		p := &page{screen: a.out()}
		if i > 0 {
			p.lines("")
		}
		r.show(p, a, &items[i])
		if _, err := fmt.Fprint(a.stdout, p.text.String()); err != nil {
			return err
		}
	}
	return nil
}

func (r resource[T]) deleteCommand(a *app, example string) *cobra.Command {
	cmd := one("delete "+placeholder(r.kind)+"...", "Delete "+r.kind+"s", example,
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			return forEach(args, func(ref string) error { return c.Delete(ctx, r.kind, ref) })
		}))
	cmd.Aliases = []string{"rm"}
	cmd.ValidArgsFunction = a.complete(r.kind, true)
	return cmd
}

// forEach does something to each of several objects, also when it fails for some; the errors come back
// together in the class of the first.
func forEach[R any](refs []R, do func(R) error) error {
	var failed []error
	for _, ref := range refs {
		if err := do(ref); err != nil {
			failed = append(failed, err)
			if errors.Is(err, context.Canceled) {
				break
			}
		}
	}
	return together(failed)
}

func together(failed []error) error {
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return failed[0]
	}
	return fault.As(fault.ClassOf(failed[0]), errors.Join(failed...))
}
