package lifecycle

import (
	"context"
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

// register reads what an image is whose object is in its datastore already: from the index beside it, which says
// what every chunk of it must be.
func register(ctx context.Context, repo repository.Repository, img cloud.Image) (image.Info, error) {
	info, err := repo.Stat(ctx, img.Source)
	if err != nil {
		return image.Info{}, err
	}
	index, err := readIndex(ctx, repo, img)
	if err != nil {
		return image.Info{}, fmt.Errorf("object %s: its index %s: %w", img.Source, image.IndexName(img.Source), err)
	}
	if index.Length() != info.Size {
		return image.Info{}, fault.Errorf(fault.Corrupt, "object %s has %d bytes, and its index is of %d", img.Source, info.Size, index.Length())
	}
	found := image.Info{Format: image.Format(img.Format), Size: info.Size, ObjectSize: info.Size, Digest: index.Digest()}
	for chunk := range index.Chunks() {
		if _, length := index.Range(chunk); !index.IsZero(chunk) {
			found.StoredBytes += int64(length)
		}
	}
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
