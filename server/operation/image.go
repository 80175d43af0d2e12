package operation

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/store"
)

const mebi = 1 << 20

// CreateImage registers an image from a template: NAME, PATH (a file or URL that the server reads) or
// SIZE (MB, for an empty DATABLOCK or OS) or SOURCE (an object that is in the datastore already, with its index beside
// it, and stays as it is), TYPE, PERSISTENT, DEV_PREFIX, FORMAT, and DIGEST (ALGORITHM:HEX) that the file must have
// (SOURCE: the digest of its index). CACHE_MODE, CACHE_SIZE and PRELOAD_SIZE are defaults for its disks. The image is
// LOCKED until its content has been taken in.
func (o *Operations) CreateImage(ctx context.Context, t template.Template, datastore int) (int, error) {
	img, err := o.imageOf(t)
	if err != nil {
		return 0, err
	}
	if datastore < 0 {
		datastore = cloud.DefaultDatastore
		if fileType(img.Type) {
			datastore = cloud.FilesDatastore
		}
	}
	ds, err := o.Inv.Datastore(datastore)
	if err != nil {
		return 0, err
	}
	want := cloud.DatastoreTypeImage
	if fileType(img.Type) {
		want = cloud.DatastoreTypeFile
	}
	if ds.Type != want {
		return 0, fault.Errorf(fault.Invalid, "image %s: images of type %v go into a datastore of type %v, and datastore %s is a %v",
			img.Name, img.Type, want, ds.Name, ds.Type)
	}
	img.DatastoreID, img.RegTime, img.State = datastore, o.Now().Unix(), cloud.ImageStateLocked
	if err := o.place(&img, &ds); err != nil {
		return 0, fault.Errorf(fault.ClassOf(err), "image %s: %w", img.Name, err)
	}
	return o.newImage(ctx, img, nil)
}

// newImage writes an image's record, as part of a transaction with more.
func (o *Operations) newImage(ctx context.Context, img cloud.Image, with func(id int) ([]store.Cond, []store.Op, error)) (int, error) {
	saved := img.SavedFrom
	return create(ctx, o, creation[cloud.Image]{
		table: o.Inv.Images, owner: img.UID, name: img.Name,
		build: func(id int) (cloud.Image, []store.Cond, []store.Op, error) {
			img.ID = id
			if !img.Registered {
				img.Source = fmt.Sprintf("image-%d", id)
			}
			if saved != nil {
				img.SavedFrom = &cloud.SavedFrom{VM: saved.VM, Disk: saved.Disk, Operation: uint64(id) + 1}
			}
			if with == nil {
				return img, nil, nil, nil
			}
			conds, ops, err := with(id)
			return img, conds, ops, err
		},
	})
}

func fileType(t cloud.ImageType) bool {
	return t == cloud.ImageTypeKernel || t == cloud.ImageTypeRamdisk || t == cloud.ImageTypeContext
}

func (o *Operations) imageOf(t template.Template) (cloud.Image, error) {
	name, err := o.name(t, "image")
	if err != nil {
		return cloud.Image{}, err
	}
	img := cloud.Image{Name: name, Template: t}
	if err := checkCaching(cloud.KindImage, name, t); err != nil {
		return img, err
	}
	bad := func(format string, args ...any) (cloud.Image, error) {
		return img, fault.Errorf(fault.Invalid, "image "+name+": "+format, args...)
	}
	if text, ok := t.Get("TYPE"); ok {
		if img.Type, err = cloud.ParseImageType(text); err != nil {
			return bad("%w", err)
		}
	}
	if img.Persistent, _, err = t.Bool("PERSISTENT"); err != nil {
		return bad("%w", err)
	}
	img.Path, _ = t.Get("PATH")
	if !strings.Contains(img.Path, "://") && img.Path != "" && !filepath.IsAbs(img.Path) {
		return bad("PATH %q is not an absolute path", img.Path)
	}
	if img.Source, img.Registered = t.Get("SOURCE"); img.Registered {
		return registered(img, t)
	}
	size, sized, err := t.Int("SIZE")
	if err != nil {
		return bad("%w", err)
	}
	img.Size = int64(size) * mebi
	switch {
	case img.Path == "" && !sized:
		return bad("needs PATH, SOURCE, or SIZE for an empty one")
	case img.Path == "" && (size <= 0 || size > 1<<24):
		return bad("SIZE is %d MB", size)
	case img.Path == "" && img.Type != cloud.ImageTypeDatablock && img.Type != cloud.ImageTypeOS:
		return bad("a %v cannot be empty: needs PATH", img.Type)
	case img.Persistent && (fileType(img.Type) || img.Type == cloud.ImageTypeCDROM):
		return bad("a %v cannot be persistent", img.Type)
	}
	img.Format, _ = t.Get("FORMAT")
	img.Expect, _ = t.Get("DIGEST")
	if img.Expect == "" {
		for _, algorithm := range []string{"SHA256", "SHA1", "MD5"} {
			if hex, ok := t.Get(algorithm); ok {
				img.Expect = strings.ToLower(algorithm) + ":" + hex
			}
		}
	}
	return img, nil
}

// DeleteImage marks an image for deletion, unless a machine uses it; its content goes next. It goes through
// DISABLED, in which nobody can begin to use it, so that the look at its users cannot be too early.
func (o *Operations) DeleteImage(ctx context.Context, id int) error {
	was := cloud.ImageStateDisabled
	img, revision, err := o.Inv.Images.Update(ctx, id, func(img *cloud.Image) error {
		if img.State == cloud.ImageStateDelete {
			return fault.Errorf(fault.Busy, "image %s is being deleted", img.Name)
		}
		was, img.State = img.State, cloud.ImageStateDisabled
		return nil
	})
	if err != nil {
		return err
	}
	// The machines that had begun to use it before that revision are seen now.
	if err := o.Inv.WaitFor(ctx, revision); err != nil {
		return err
	}
	users, children := o.ImageUsers(id), o.children(id)
	img.State = cloud.ImageStateDelete
	if len(users)+len(children) > 0 {
		img.State = was
	}
	op, err := o.Inv.Images.PutOp(id, img)
	if err != nil {
		return err
	}
	revision, err = o.Inv.Store.Txn(ctx, []store.Cond{o.Inv.Images.Cond(id, revision)}, []store.Op{op})
	if err != nil {
		return err
	}
	if len(users) > 0 {
		err = fault.Errorf(fault.Busy, "image %s is used by %d machines, vm %d among them", img.Name, len(users), users[0])
	} else if len(children) > 0 {
		err = fault.Errorf(fault.Busy, "image %s has clones that depend on it, image %d (%s) among them: flatten or delete these first",
			img.Name, children[0].ID, children[0].Name)
	}
	if wait := o.Inv.WaitFor(ctx, revision); err == nil {
		err = wait
	}
	return err
}

// ImageUsers lists the machines that use an image.
func (o *Operations) ImageUsers(id int) []int {
	var users []int
	for _, row := range o.Inv.VMRows(func(vm *cloud.VM) bool {
		return (vm.State != cloud.StateDone || vm.HostID >= 0) && contains(vm.ImageIDs(), id)
	}) {
		users = append(users, row.ID)
	}
	return users
}

// SetPersistent makes an unused image persistent, or not.
func (o *Operations) SetPersistent(ctx context.Context, id int, persistent bool) error {
	img, err := o.Inv.Image(id)
	if err != nil {
		return err
	}
	if users := o.ImageUsers(id); len(users) > 0 {
		return fault.Errorf(fault.Busy, "image %s is used by vm %d", img.Name, users[0])
	}
	if persistent && (fileType(img.Type) || img.Type == cloud.ImageTypeCDROM) {
		return fault.Errorf(fault.Invalid, "image %s: a %v cannot be persistent", img.Name, img.Type)
	}
	if ds, err := o.Inv.Datastore(img.DatastoreID); err == nil && persistent {
		driver, err := cloud.LookupDatastoreDriver(ds.Driver)
		if err == nil && !driver.Persistent {
			err = notPersistent(&ds)
		}
		if err != nil {
			return fault.Errorf(fault.ClassOf(err), "image %s: %w", img.Name, err)
		}
	}
	_, revision, err := o.Inv.Images.Update(ctx, id, func(img *cloud.Image) error {
		img.Persistent = persistent
		return nil
	})
	if err != nil {
		return err
	}
	return o.Inv.WaitFor(ctx, revision)
}
