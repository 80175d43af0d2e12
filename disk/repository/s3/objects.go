package s3

import (
	"context"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// writerID is the metadata of an object that says whose commit it was.
const writerID = "Hayloft-Writer"

func (r *Repository) look(ctx context.Context, key string) (minio.ObjectInfo, error) {
	var info minio.ObjectInfo
	err := r.ask(ctx, func(ctx context.Context) (err error) {
		info, err = r.core.StatObject(ctx, r.bucket, key, minio.StatObjectOptions{})
		return err
	})
	return info, err
}

// Stat implements repository.Repository.
func (r *Repository) Stat(ctx context.Context, name string) (repository.Info, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Info{}, err
	}
	info, err := r.look(ctx, r.key(name))
	if err != nil {
		return repository.Info{}, r.object(name, err)
	}
	return repository.Info{Name: name, Size: info.Size, Modified: info.LastModified}, nil
}

// Delete implements repository.Repository.
func (r *Repository) Delete(ctx context.Context, name string) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	if _, err := r.look(ctx, r.key(name)); err != nil { // S3 deletes what is not there
		return r.object(name, err)
	}
	return r.object(name, r.remove(ctx, r.key(name)))
}

func (r *Repository) remove(ctx context.Context, key string) error {
	return r.ask(ctx, func(ctx context.Context) error {
		return r.core.RemoveObject(ctx, r.bucket, key, minio.RemoveObjectOptions{})
	})
}

// List implements repository.Repository. Keys that are no names of objects are left out.
func (r *Repository) List(ctx context.Context, prefix string) ([]repository.Info, error) {
	var list []repository.Info
	err := r.listKeys(ctx, r.prefix+prefix, func(o minio.ObjectInfo) {
		name := strings.TrimPrefix(o.Key, r.prefix)
		if repository.CheckName(name) == nil {
			list = append(list, repository.Info{Name: name, Size: o.Size, Modified: o.LastModified})
		}
	}, func() { list = nil })
	if err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "%s: %w", r.label, err)
	}
	slices.SortFunc(list, func(a, b repository.Info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// listKeys gives each object below prefix; again is called before all are given once more.
func (r *Repository) listKeys(ctx context.Context, prefix string, each func(minio.ObjectInfo), again func()) error {
	return r.call(ctx, r.patience.Stall, func(ctx context.Context, alive func()) (int, error) {
		again()
		ctx, cancel := context.WithCancel(ctx) // ends the listing's goroutine
		defer cancel()
		for o := range r.core.Client.ListObjects(ctx, r.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if o.Err != nil {
				return 0, o.Err
			}
			alive()
			each(o)
		}
		return 0, ctx.Err()
	})
}
