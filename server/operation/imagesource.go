package operation

import (
	"context"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/disk/repository"
	"hayloft/image"
)

// registered reads the rest of the template of an image whose object is there already.
func registered(img cloud.Image, t template.Template) (cloud.Image, error) {
	bad := func(format string, args ...any) (cloud.Image, error) {
		return img, fault.Errorf(fault.Invalid, "image "+img.Name+": "+format, args...)
	}
	if err := repository.CheckName(img.Source); err != nil {
		return bad("SOURCE: %w", err)
	}
	switch {
	case img.Path != "":
		return bad("has both PATH and SOURCE: what is to be taken in, or what is there already")
	case t.Has("SIZE"):
		return bad("SIZE goes with PATH or alone: an object of SOURCE stays as it is")
	case img.Persistent && (fileType(img.Type) || img.Type == cloud.ImageTypeCDROM):
		return bad("a %v cannot be persistent", img.Type)
	}
	format, ok := t.Get("FORMAT")
	if img.Format = format; !ok {
		img.Format = string(image.Raw)
	}
	if probe := (cloud.Image{Format: img.Format}); img.Format != string(image.Raw) && !probe.Tree() {
		return bad("FORMAT of an object that is there can be raw, tar, tar.gz, tar.zst or squashfs, not %s", img.Format)
	}
	img.Expect, _ = t.Get("DIGEST")
	return img, nil
}

// place refuses what the datastore cannot do with the image, and objects that are another image already.
func (o *Operations) place(img *cloud.Image, ds *cloud.Datastore) error {
	driver, err := cloud.LookupDatastoreDriver(ds.Driver)
	switch {
	case err != nil:
		return err
	case driver.ReadOnly && !img.Registered:
		return fault.Errorf(fault.Unsupported, "datastore %s of driver %s is only read from: name an object in it with SOURCE", ds.Name, ds.Driver)
	case img.Persistent && !driver.Persistent:
		return notPersistent(ds)
	case !img.Registered:
		return nil
	}
	for _, other := range o.Inv.AllImages() {
		if other.DatastoreID == ds.ID && other.Source == img.Source {
			return fault.Errorf(fault.Exists, "SOURCE %s in datastore %s is image %d (%s) already", img.Source, ds.Name, other.ID, other.Name)
		}
	}
	return nil
}

func notPersistent(ds *cloud.Datastore) error {
	return fault.Errorf(fault.Unsupported, "an image in datastore %s cannot be persistent: nothing is written in place with driver %s", ds.Name, ds.Driver)
}

// fixedInImages are attributes that an image has for life, or that have an operation of their own.
var fixedInImages = []string{"NAME", "TYPE", "PATH", "SOURCE", "SIZE", "PERSISTENT", "FORMAT", "DIGEST"}

// UpdateImage replaces an image's template, or merges into it. What makes the image what it is stays. New defaults of
// caching hold for machines that are made from then on.
func (o *Operations) UpdateImage(ctx context.Context, id int, t template.Template, merge bool) error {
	_, revision, err := o.Inv.Images.Update(ctx, id, func(i *cloud.Image) error {
		next, err := updated(i.Template, t, merge, fixedInImages)
		if err != nil {
			return fault.Errorf(fault.Invalid, "image %s: %w", i.Name, err)
		}
		i.Template = next
		return checkCaching(cloud.KindImage, i.Name, next)
	})
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}
