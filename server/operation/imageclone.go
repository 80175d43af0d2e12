package operation

import (
	"context"
	"fmt"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/server/inventory"
	"hayloft/store"
)

// CloneImage is what a clone of an image is to be.
type CloneImage struct {
	Name       string
	Datastore  int   // -1: that of the image
	Persistent *bool // nil: as the image
}

// CloneImage makes a new image with the content of another one, copy-on-write where their datastore can. The image is LOCKED
// until it is there. A persistent image can be cloned while nobody uses it.
func (o *Operations) CloneImage(ctx context.Context, id int, c CloneImage) (int, error) {
	from, err := o.Inv.Image(id)
	if err != nil {
		return 0, err
	}
	refuse := func(class fault.Class, format string, args ...any) (int, error) {
		return 0, fault.Errorf(class, "clone of image %d (%s): %w", id, from.Name, fmt.Errorf(format, args...))
	}
	switch {
	case c.Name == "":
		return refuse(fault.Invalid, "it needs a name")
	case from.State != cloud.ImageStateReady:
		return refuse(fault.WrongState, "it is %v, and must be READY", from.State)
	}
	if users := o.ImageUsers(id); from.Persistent && len(users) > 0 {
		return refuse(fault.Busy, "it is persistent, and vm %d uses it", users[0])
	}
	img := cloud.Image{Name: c.Name, Type: from.Type, Persistent: from.Persistent, DatastoreID: from.DatastoreID, Format: from.Format, Size: from.Size,
		State: cloud.ImageStateLocked, RegTime: o.Now().Unix(), Template: from.Template.Clone(), ClonedFrom: &cloud.ClonedFrom{ImageID: id}}
	for _, name := range []string{"PATH", "SOURCE", "DIGEST", "SHA256", "SHA1", "MD5", "SIZE"} {
		img.Template.Delete(name)
	}
	img.Template.Set("NAME", c.Name)
	if c.Persistent != nil {
		img.Persistent = *c.Persistent
		img.Template.Delete("PERSISTENT")
	}
	if img.Persistent && (fileType(img.Type) || img.Type == cloud.ImageTypeCDROM) {
		return refuse(fault.Invalid, "a %v cannot be persistent", img.Type)
	}
	if c.Datastore >= 0 {
		img.DatastoreID = c.Datastore
	}
	ds, err := o.Inv.Datastore(img.DatastoreID)
	if err != nil {
		return 0, err
	}
	source, err := o.Inv.Datastore(from.DatastoreID)
	if err != nil {
		return 0, err
	}
	if ds.Type != source.Type {
		return refuse(fault.Invalid, "datastore %s is a %v, and that of the image a %v", ds.Name, ds.Type, source.Type)
	}
	driver, err := cloud.LookupDatastoreDriver(ds.Driver)
	switch {
	case err != nil:
		return 0, err
	case driver.ReadOnly:
		return refuse(fault.Unsupported, "datastore %s of driver %s is only read from: name one that is written to with --datastore", ds.Name, ds.Driver)
	case img.Persistent && !driver.Persistent:
		return 0, notPersistent(&ds)
	}
	return o.newImage(ctx, img, func(int) ([]store.Cond, []store.Op, error) { return o.holdStill(ctx, id) })
}

// holdStill sees to it that a persistent image has no machine when a clone of it begins, and that whoever is about to make one
// looks again, and finds the clone.
func (o *Operations) holdStill(ctx context.Context, id int) ([]store.Cond, []store.Op, error) {
	from, revision, err := o.Inv.Images.Get(ctx, id)
	if err != nil || !from.Persistent {
		return nil, nil, err
	}
	op, err := o.Inv.Images.PutOp(id, from)
	return []store.Cond{o.Inv.Images.Cond(id, revision), {Key: inventory.PersistentKey(id)}}, []store.Op{op}, err
}

// cloning is an image that is being made of a persistent one right now, if there is one.
func (o *Operations) cloning(id int) (cloud.Image, bool) {
	for _, img := range o.Inv.AllImages() {
		if img.State == cloud.ImageStateLocked && img.ClonedFrom != nil && img.ClonedFrom.ImageID == id {
			return img, true
		}
	}
	return cloud.Image{}, false
}

// FlattenImage makes a clone independent of the image that it was cloned from, in the background. It does nothing for one that
// is independent.
func (o *Operations) FlattenImage(ctx context.Context, id int) error {
	img, err := o.Inv.Image(id)
	if err != nil {
		return err
	}
	if img.State != cloud.ImageStateReady {
		return fault.Errorf(fault.WrongState, "image %d (%s) is %v", id, img.Name, img.State)
	}
	if !img.Depends() {
		return nil
	}
	_, revision, err := o.Inv.Images.Update(ctx, id, func(img *cloud.Image) error {
		img.Flatten, img.Error = true, ""
		return nil
	})
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}

// children are the images that need an image's object to stay.
func (o *Operations) children(id int) []cloud.Image {
	parent, err := o.Inv.Image(id)
	if err != nil {
		return nil
	}
	var found []cloud.Image
	for _, img := range o.Inv.AllImages() {
		if c := img.ClonedFrom; c != nil && c.ImageID == id && img.DatastoreID == parent.DatastoreID &&
			(img.State == cloud.ImageStateLocked || repository.CloneKind(c.Kind).Depends()) {
			found = append(found, img)
		}
	}
	return found
}
