package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/image"
)

// objects are those that go when the image is deleted. An object that was there before the image stays, with its
// index.
func objects(img cloud.Image) []string {
	if img.Registered {
		return []string{image.ProfileName(img.Source)}
	}
	return []string{img.Source, image.IndexName(img.Source), image.ProfileName(img.Source)}
}

// indexObject is the name of the chunk index of an image whose own datastore could not take it in.
func indexObject(id int) string { return image.IndexName(fmt.Sprintf("image-%d", id)) }

// register reads what an image is whose object is in its datastore already: from the index beside it, which says
// what every chunk of it must be. Where there is none, the object is read through, once, and the index goes into the default
// datastore.
func (m *importers) register(ctx context.Context, repo repository.Repository, img cloud.Image) (found made, err error) {
	info, err := repo.Stat(ctx, img.Source)
	if err != nil {
		return found, err
	}
	index, err := readIndex(ctx, repo, img)
	if fault.Is(err, fault.NotFound) {
		found.indexIn = indexed
		index, err = m.makeIndex(ctx, repo, img)
	} else if err != nil {
		err = fmt.Errorf("object %s: its index %s: %w", img.Source, image.IndexName(img.Source), err)
	}
	if err != nil {
		return found, err
	}
	if index.Length() != info.Size {
		return found, fault.Errorf(fault.Corrupt, "object %s has %d bytes, and its index is of %d", img.Source, info.Size, index.Length())
	}
	found.Info = image.Info{Format: image.Format(img.Format), Size: info.Size, ObjectSize: info.Size, Digest: index.Digest(), StoredBytes: index.DataBytes()}
	return found, nil
}

func readIndex(ctx context.Context, repo repository.Repository, img cloud.Image) (*image.Index, error) {
	source, err := repo.Open(ctx, image.IndexName(img.Source))
	if err != nil {
		return nil, err
	}
	defer source.Close()
	return image.ReadIndex(source, source.Size(), strings.ToLower(img.Expect))
}

// indexed is where the index of an image is that was registered without one.
const indexed = cloud.DefaultDatastore

// makeIndex reads an object through and keeps its index.
func (m *importers) makeIndex(ctx context.Context, repo repository.Repository, img cloud.Image) (*image.Index, error) {
	src, err := repo.Open(ctx, img.Source)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	index, _, err := image.Scan(ctx, nil, src, src.Size(), func(done int64) { m.c.progress.setImage(img.ID, done, src.Size()) })
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", img.Source, err)
	}
	if want := strings.ToLower(img.Expect); want != "" && index.Digest() != want {
		return nil, fault.Errorf(fault.Corrupt, "object %s: its digest is %s, expected %s", img.Source, index.Digest(), want)
	}
	ds, err := m.c.inv.Datastore(indexed)
	if err != nil {
		return nil, err
	}
	to, err := m.c.Open(RepositoryOf(ds))
	if err != nil {
		return nil, err
	}
	if err := to.Delete(ctx, indexObject(img.ID)); err != nil && !fault.Is(err, fault.NotFound) { // of an earlier attempt
		return nil, err
	}
	out, err := to.Create(ctx, indexObject(img.ID))
	if err != nil {
		return nil, err
	}
	if _, err = out.WriteAt(index.Marshal(), 0); err == nil {
		err = out.Commit(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, out.Abort())
	}
	return index, nil
}

// dropIndex deletes the index of an image that has it in another datastore.
func (m *importers) dropIndex(ctx context.Context, img cloud.Image) error {
	if img.IndexIn == 0 {
		return nil
	}
	ds, err := m.c.inv.Datastore(img.IndexIn)
	if err != nil {
		return err
	}
	repo, err := m.c.Open(RepositoryOf(ds))
	if err == nil {
		err = repo.Delete(ctx, indexObject(img.ID))
	}
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// indexOfImage reads the index of an image, wherever it is.
func (m *importers) indexOfImage(ctx context.Context, repo repository.Repository, img cloud.Image) (*image.Index, error) {
	if img.IndexIn == 0 {
		img.Expect = img.Digest
		return readIndex(ctx, repo, img)
	}
	ds, err := m.c.inv.Datastore(img.IndexIn)
	if err != nil {
		return nil, err
	}
	if repo, err = m.c.Open(RepositoryOf(ds)); err != nil {
		return nil, err
	}
	src, err := repo.Open(ctx, indexObject(img.ID))
	if err != nil {
		return nil, err
	}
	defer src.Close()
	return image.ReadIndex(src, src.Size(), img.Digest)
}
