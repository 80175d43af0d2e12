package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"hayloft/server/api/client"
)

// redrawEvery bounds how often a watched list is drawn anew, whatever the number of changes.
const redrawEvery = 200 * time.Millisecond

// watchList shows a list and then what changes in it, until ctx ends.
func watchList[T any](ctx context.Context, a *app, c *client.Client, r resource[T], wanted func(*T) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	changes := make(chan change[T])
	defer func() {
		cancel(nil)
		for range changes { // until the watch has ended
		}
	}()
	go func() {
		defer close(changes)
		for event, err := range c.Watch(ctx, r.kind) {
			if err != nil {
				cancel(err)
				return
			}
			next := change[T]{synced: event.Synced, id: event.ID, gone: event.Deleted}
			if !event.Synced && !event.Deleted {
				if next.object, err = client.Object[T](event); err != nil {
					cancel(err)
					return
				}
				next.gone = !wanted(&next.object)
			}
			select {
			case changes <- next:
			case <-ctx.Done():
				return
			}
		}
	}()
	v := &view[T]{app: a, resource: r, objects: map[int]T{}, table: newTable(a.out(), r.columns(a))}
	var show func(change[T]) error = v.append
	if a.output == "" && v.table.screen.terminal() {
		show = v.redraw
	} else {
		v.table.reserve()
	}
	timer := time.NewTimer(redrawEvery)
	defer timer.Stop()
	for {
		select {
		case next, open := <-changes:
			if !open {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			if err := show(next); err != nil {
				return err
			}
		case <-timer.C:
			if err := v.draw(); err != nil {
				return err
			}
			timer.Reset(redrawEvery)
		}
	}
}

// change is one event of a watch. gone: deleted, or not wanted in the list (any more).
type change[T any] struct {
	synced, gone bool
	id           int
	object       T
}

// view is a list as it is shown.
type view[T any] struct {
	app      *app
	resource resource[T]
	table    *table[T]
	objects  map[int]T
	synced   bool
	stale    bool // what is on the screen is not what is
	drawn    int  // lines on the screen
}

// note brings the objects up to date and says whether the change is to be seen.
func (v *view[T]) note(next change[T]) bool {
	_, had := v.objects[next.id]
	switch {
	case next.synced:
		v.synced = true
		return false
	case next.gone:
		delete(v.objects, next.id)
		return had
	}
	v.objects[next.id] = next.object
	return true
}

func (v *view[T]) items() []T {
	items := make([]T, 0, len(v.objects))
	for _, item := range v.objects {
		items = append(items, item)
	}
	v.resource.sort(items)
	return items
}

// append writes the list once, and then a line for each change.
func (v *view[T]) append(next change[T]) error {
	old := v.objects[next.id]
	switch seen := v.note(next); {
	case next.synced:
		return v.beginning()
	case !seen || !v.synced:
		return nil
	case next.gone && v.app.output != "":
		return nil
	case next.gone:
		id, name := v.resource.key(&old)
		_, err := fmt.Fprintf(v.app.stdout, "%d %s is no longer in the list\n", id, printable(name))
		return err
	}
	return v.one(&next.object)
}

func (v *view[T]) beginning() error {
	if v.app.output == "" {
		_, err := fmt.Fprintln(v.app.stdout, strings.Join(v.table.lines(v.items()), "\n"))
		return err
	}
	for _, item := range v.items() {
		if err := v.one(&item); err != nil {
			return err
		}
	}
	return nil
}

// one writes one object: as a line of JSON, a YAML document, or a row.
func (v *view[T]) one(item *T) error {
	var err error
	switch v.app.output {
	case "json":
		err = json.NewEncoder(v.app.stdout).Encode(item)
	case "yaml":
		if _, err = fmt.Fprintln(v.app.stdout, "---"); err == nil {
			err = writeYAML(v.app.stdout, item)
		}
	case "":
		v.table.fit([]T{*item})
		_, err = fmt.Fprintln(v.app.stdout, v.table.row(item))
	default:
		_, err = fmt.Fprintln(v.app.stdout, v.resource.label(v.app, item))
	}
	return err
}

// redraw notes a change for the next draw; the beginning is drawn at once.
func (v *view[T]) redraw(next change[T]) error {
	v.stale = v.note(next) || v.stale || next.synced
	if next.synced {
		return v.draw()
	}
	return nil
}

// draw writes the list over what it has drawn before. What does not fit the terminal is only counted.
func (v *view[T]) draw() error {
	if !v.stale || !v.synced {
		return nil
	}
	lines := v.table.lines(v.items())
	if most := max(v.table.screen.height-1, 3); len(lines) > most {
		lines = append(lines[:most-1], fmt.Sprintf("... and %d more", len(lines)-most+1))
	}
	var out strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA\x1b[J", v.drawn)
	}
	out.WriteString(strings.Join(lines, "\n") + "\n")
	v.drawn, v.stale = len(lines), false
	_, err := fmt.Fprint(v.app.stdout, out.String())
	return err
}
