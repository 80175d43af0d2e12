package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/image"
)

// clone makes an image's object from that of another image: by the storage where both are in one datastore that can, else
// through this server.
func (m *importers) clone(ctx context.Context, repo repository.Repository, img cloud.Image) (done made, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("clone of image %d: %w", img.ClonedFrom.ImageID, err)
		}
	}()
	from, err := m.c.inv.Image(img.ClonedFrom.ImageID)
	if err != nil {
		return done, err
	}
	if from.State != cloud.ImageStateReady {
		return done, fault.Errorf(fault.WrongState, "it is %v", from.State)
	}
	source := repo
	if from.DatastoreID != img.DatastoreID {
		if source, err = m.open(from); err != nil {
			return done, err
		}
	}
	src, err := source.Open(ctx, from.Source)
	if err != nil {
		return done, err
	}
	defer src.Close()
	var index *image.Index
	if !from.Persistent { // else what its index says has been over since its first machine
		if index, err = m.indexOfImage(ctx, source, from); err != nil {
			return done, fmt.Errorf("its index: %w", err)
		}
	}
	report := func(done int64) { m.c.progress.setImage(img.ID, done, src.Size()) }
	w, kind, copied, err := begin(ctx, repo, source, from, img)
	if err != nil {
		return done, err
	}
	switch {
	case copied && index != nil:
		if err = w.SetSize(src.Size()); err == nil {
			_, err = index.CopyTo(ctx, w, src, report)
		}
	case copied:
		if err = w.SetSize(src.Size()); err == nil {
			index, _, err = image.Scan(ctx, w, src, src.Size(), report)
		}
	case index == nil:
		return m.cloneThenRead(ctx, repo, w, kind, from, img, report)
	}
	if err != nil {
		return done, errors.Join(err, w.Abort())
	}
	if err := image.Publish(ctx, repo, img.Source, w, index); err != nil {
		return done, err
	}
	return made{Info: cloneInfo(from, index), clone: kind}, nil
}

// cloneThenRead ends a clone of what has no index: it is read once it is there, and nobody can change it any more.
func (m *importers) cloneThenRead(ctx context.Context, repo repository.Repository, w repository.Writer, kind repository.CloneKind, from, img cloud.Image, report func(int64)) (done made, err error) {
	if err := w.Commit(ctx); err != nil {
		return done, errors.Join(err, w.Abort())
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = errors.Join(err, repo.Delete(ctx, img.Source))
		}
	}()
	src, err := repo.Open(ctx, img.Source)
	if err != nil {
		return done, err
	}
	defer src.Close()
	index, _, err := image.Scan(ctx, nil, src, src.Size(), report)
	if err != nil {
		return done, err
	}
	beside, err := repo.Create(ctx, image.IndexName(img.Source))
	if err != nil {
		return done, err
	}
	if _, err = beside.WriteAt(index.Marshal(), 0); err == nil {
		err = beside.Commit(ctx)
	}
	if err != nil {
		return done, errors.Join(err, beside.Abort())
	}
	return made{Info: cloneInfo(from, index), clone: kind}, nil
}

func cloneInfo(from cloud.Image, index *image.Index) image.Info {
	return image.Info{Format: image.Format(from.Format), Size: max(from.Size, index.Length()), ObjectSize: index.Length(), StoredBytes: index.DataBytes(), Digest: index.Digest()}
}

// begin starts the new object; copied says that its content is still to be written.
func begin(ctx context.Context, repo, source repository.Repository, from, img cloud.Image) (w repository.Writer, kind repository.CloneKind, copied bool, err error) {
	if cloner, ok := repo.(repository.Cloner); ok && source == repo {
		w, kind, err = cloneFrom(ctx, cloner, from, img.Source)
		if !fault.Is(err, fault.Unsupported) {
			return w, kind, false, err
		}
	}
	w, err = repo.Create(ctx, img.Source)
	return w, repository.Copied, true, err
}

// cloneFrom clones by the storage. A clone must not make its parent slow for the machines that write to that.
func cloneFrom(ctx context.Context, cloner repository.Cloner, from cloud.Image, name string) (repository.Writer, repository.CloneKind, error) {
	if copier, ok := cloner.(repository.Copier); ok && from.Persistent {
		return copier.CopyFrom(ctx, from.Source, name)
	}
	return cloner.CreateFrom(ctx, from.Source, name)
}

// flatten makes a clone independent of the image it was cloned from.
func (m *importers) flatten(ctx context.Context, img cloud.Image) error {
	now, _, err := m.c.inv.Images.Get(ctx, img.ID)
	if err != nil || !now.Flatten || now.State != cloud.ImageStateReady {
		return err
	}
	repo, err := m.open(img)
	if err == nil {
		cloner, ok := repo.(repository.Cloner)
		if !ok {
			err = fault.Errorf(fault.Unsupported, "datastore %d does not clone", img.DatastoreID)
		} else {
			err = cloner.Flatten(ctx, img.Source)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err() // it is tried again when a server is there again
	}
	_, revision, recorded := m.c.inv.Images.Update(ctx, img.ID, func(now *cloud.Image) error {
		now.Flatten = false
		switch {
		case err != nil:
			now.Error, now.ErrorClass = "flatten: "+err.Error(), fault.ClassOf(err).String()
		case now.ClonedFrom != nil:
			now.ClonedFrom.Kind = string(repository.Copied)
		}
		return nil
	}, m.c.fence)
	if err := errors.Join(err, recorded); err != nil {
		return err
	}
	m.c.log.Info("image independent of its parent", "image", img.ID)
	return m.c.inv.WaitFor(ctx, revision)
}
