package rbd

import (
	"context"
	"slices"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

// registry is the rados object whose omap has the ids of all images that are ours.
const registry = "hayloft.images"

// features: exclusive-lock, object-map and fast-diff tell holes quickly; deep-flatten lets go of the parent for the
// clones of a clone, too.
const features = "layering,exclusive-lock,object-map,fast-diff,deep-flatten"

// rbdImage is what "rbd info" says.
type rbdImage struct {
	Name     string  `json:"name"`
	ID       string  `json:"id"`
	Size     int64   `json:"size"`
	Modified string  `json:"modify_timestamp"`
	Parent   *parent `json:"parent"`
}

// parent is the snapshot that an image is a clone of.
type parent struct {
	Pool      string `json:"pool"`
	Namespace string `json:"pool_namespace"`
	Image     string `json:"image"`
	ID        string `json:"id"`
	Snapshot  string `json:"snapshot"`
}

func (i rbdImage) header() string { return "rbd_header." + i.ID }

// modified reads the time as ctime(3) writes it, in UTC.
func (i rbdImage) modified() time.Time {
	t, _ := time.Parse(time.ANSIC, i.Modified)
	return t
}

// info describes an image, whosever it is.
func (r *Repository) info(ctx context.Context, image string) (rbdImage, error) {
	var i rbdImage
	err := r.ask(ctx, &i, "info", "--image", image)
	if fault.Is(err, fault.NotFound) {
		err = fault.Errorf(fault.NotFound, "there is none")
	}
	return i, err
}

// lookup finds the image of an object: fault.Busy when it is not ours.
func (r *Repository) lookup(ctx context.Context, name string) (rbdImage, error) {
	i, err := r.info(ctx, encode(name))
	if err != nil {
		return i, err
	}
	ours, err := r.ours(ctx, i.ID)
	if err == nil && !ours {
		err = fault.Errorf(fault.Busy, "the pool has an image %q (id %s) that is not Hayloft's: it is left alone", i.Name, i.ID)
	}
	return i, err
}

// ours asks whether an image is Hayloft's. One that is stays so.
func (r *Repository) ours(ctx context.Context, id string) (bool, error) {
	if _, ok := r.known.Load(id); ok {
		return true, nil
	}
	out, err := r.rados(ctx, "getomapval", registry, id, "/dev/null")
	switch {
	case fault.Is(err, fault.NotFound), err != nil && strings.HasPrefix(string(out), "No such key"):
		return false, nil
	case err != nil:
		return false, err
	}
	r.known.Store(id, true)
	return true, nil
}

func (r *Repository) register(ctx context.Context, i rbdImage) error {
	if _, err := r.rados(ctx, "setomapval", registry, i.ID, "1"); err != nil {
		return err
	}
	r.known.Store(i.ID, true)
	return nil
}

func (r *Repository) unregister(ctx context.Context, i rbdImage) error {
	r.known.Delete(i.ID)
	_, err := r.rados(ctx, "rmomapkey", registry, i.ID)
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	return err
}

// registered are the ids of all that is ours, sorted.
func (r *Repository) registered(ctx context.Context) ([]string, error) {
	out, err := r.rados(ctx, "listomapkeys", registry)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	ids := strings.Fields(string(out))
	slices.Sort(ids)
	return ids, err
}

// watchers are the addresses of those who have an image open.
func (r *Repository) watchers(ctx context.Context, image string) ([]string, error) {
	var status struct {
		Watchers []struct {
			Address string `json:"address"`
		} `json:"watchers"`
	}
	err := r.ask(ctx, &status, "status", "--image", image)
	var all []string
	for _, w := range status.Watchers {
		all = append(all, w.Address)
	}
	return all, err
}
