package client

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// WaitVMs watches machines until want says done, or returns an error, for each of them. An error of want
// ends the wait for that machine only; all of them come back joined, in the class of the first. onChange,
// which may be nil, sees all the machines, in the order of ids, at the beginning and after each change;
// the slice is only its own until it returns. A server that goes away is waited for, up to a minute.
//
// It returns the machines as last seen. A machine whose record is deleted meanwhile counts as DONE. Other
// errors: fault.NotFound for a machine that does not exist, ctx's own, fault.Unavailable.
func (c *Client) WaitVMs(ctx context.Context, ids []int, want func(api.VM) (bool, error), onChange func([]api.VM)) ([]api.VM, error) {
	w := &wait[api.VM]{
		kind: cloud.KindVM, ids: ids, onChange: onChange, get: c.VM,
		gone: func(id int, vm *api.VM) error {
			if vm.StateName == "" {
				return fault.Errorf(fault.NotFound, "vm %d does not exist", id)
			}
			done := cloud.At(cloud.StateDone)
			vm.State, vm.LCM, vm.StateName, vm.StateCode = done.State, done.LCM, done.String(), done.Short()
			return nil
		},
		want: want,
	}
	return w.run(ctx, c)
}

// WaitImage watches one image as WaitVMs does machines. want is told when there is no such image, or no
// more; the image is then as last seen.
func (c *Client) WaitImage(ctx context.Context, id int, want func(image api.Image, gone bool) (bool, error)) (api.Image, error) {
	gone := false
	w := &wait[api.Image]{
		kind: cloud.KindImage, ids: []int{id},
		get:  func(ctx context.Context, id int) (api.Image, error) { return c.Image(ctx, strconv.Itoa(id)) },
		gone: func(int, *api.Image) error { gone = true; return nil },
		want: func(image api.Image) (bool, error) { return want(image, gone) },
	}
	images, err := w.run(ctx, c)
	return images[0], err
}

// How long a wait goes on trying when the server goes away, and how often. A server that is started anew
// needs a few seconds.
const (
	patience     = time.Minute
	firstRetry   = 100 * time.Millisecond
	longestRetry = 2 * time.Second
)

// wait is a wait for some objects of a kind.
type wait[T any] struct {
	kind     string
	ids      []int
	want     func(T) (bool, error)
	onChange func([]T)
	get      func(context.Context, int) (T, error)
	gone     func(id int, object *T) error // lets the object as last seen, or a zero one, say that it is no more

	objects []T
	seen    []bool
	ended   []bool
	failed  error
	synced  time.Time // zero until it has happened
}

// run is the whole wait, over as many watches as it takes.
func (w *wait[T]) run(ctx context.Context, c *Client) ([]T, error) {
	w.objects, w.seen, w.ended = make([]T, len(w.ids)), make([]bool, len(w.ids)), make([]bool, len(w.ids))
	retry := firstRetry
	for {
		before := w.synced
		err := w.watch(ctx, c)
		if err == nil {
			return w.objects, w.failed
		}
		if ctx.Err() != nil {
			return w.objects, ctx.Err()
		}
		if w.synced != before {
			retry = firstRetry
		}
		if !fault.Is(err, fault.Unavailable) || w.synced.IsZero() || time.Since(w.synced) > patience {
			return w.objects, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, longestRetry)
	}
}

// watch follows one watch until all objects have ended (nil) or the watch has.
func (w *wait[T]) watch(ctx context.Context, c *Client) error {
	clear(w.seen)
	synced := false
	for event, err := range c.Watch(ctx, w.kind) {
		if err != nil {
			if synced {
				w.synced = time.Now() // patience begins when the server goes away
			}
			return err
		}
		at := slices.Index(w.ids, event.ID)
		switch {
		case event.Synced:
			synced, w.synced = true, time.Now()
			if err := w.complete(ctx); err != nil {
				return err
			}
		case event.Kind != w.kind || at < 0:
			continue
		case event.Deleted:
			w.record(at, w.gone(w.ids[at], &w.objects[at]))
		default:
			if w.objects[at], err = Object[T](event); err != nil {
				return err
			}
			w.record(at, nil)
		}
		if !synced {
			continue
		}
		if w.onChange != nil {
			w.onChange(slices.Clone(w.objects))
		}
		if !slices.Contains(w.ended, false) {
			return nil
		}
	}
	return ctx.Err()
}

// complete asks for what the beginning of a watch did not show: machines that are DONE, and what does not
// exist.
func (w *wait[T]) complete(ctx context.Context) error {
	for at, id := range w.ids {
		if w.seen[at] || w.ended[at] {
			continue
		}
		object, err := w.get(ctx, id)
		switch {
		case fault.Is(err, fault.NotFound):
			err = w.gone(w.ids[at], &w.objects[at])
		case err != nil:
			return err
		default:
			w.objects[at] = object
		}
		w.record(at, err)
	}
	return nil
}

// record asks whether an object has ended; err is an end by itself.
func (w *wait[T]) record(at int, err error) {
	w.seen[at] = true
	if w.ended[at] {
		return
	}
	done := true
	if err == nil {
		done, err = w.want(w.objects[at])
	}
	w.ended[at] = done || err != nil
	if err != nil && w.failed == nil {
		w.failed = err
	} else if err != nil {
		w.failed = fault.As(fault.ClassOf(w.failed), errors.Join(w.failed, err))
	}
}
