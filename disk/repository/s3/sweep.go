package s3

import (
	"context"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"hayloft/cloud/fault"
)

// Sweep implements repository.Sweeper. Nothing tells whether the writer of an upload lives, so only those are aborted
// that began more than a day ago.
func (r *Repository) Sweep(ctx context.Context, prefix string) error {
	if err := r.sweepUploads(ctx, prefix); err != nil {
		return fault.Errorf(fault.ClassOf(err), "%s: uploads: %w", r.label, err)
	}
	if err := r.sweepZeros(ctx, prefix); err != nil {
		return fault.Errorf(fault.ClassOf(err), "%s: %w", r.label, err)
	}
	return nil
}

func (r *Repository) sweepUploads(ctx context.Context, prefix string) error {
	keyMarker, idMarker := "", ""
	for {
		var page minio.ListMultipartUploadsResult
		err := r.ask(ctx, func(ctx context.Context) (err error) {
			page, err = r.core.ListMultipartUploads(ctx, r.bucket, r.prefix+prefix, keyMarker, idMarker, "", 0)
			return err
		})
		if err != nil {
			return err
		}
		for _, u := range page.Uploads {
			if !strings.HasPrefix(u.Key, r.prefix+prefix) || time.Since(u.Initiated) < r.dead {
				continue
			}
			err := r.ask(ctx, func(ctx context.Context) error { return r.core.AbortMultipartUpload(ctx, r.bucket, u.Key, u.UploadID) })
			if err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		if !page.IsTruncated || page.NextKeyMarker == keyMarker && page.NextUploadIDMarker == idMarker {
			return nil
		}
		keyMarker, idMarker = page.NextKeyMarker, page.NextUploadIDMarker
	}
}

// sweepZeros deletes the objects of zeros that writers use.
func (r *Repository) sweepZeros(ctx context.Context, prefix string) error {
	dir := prefix[:strings.LastIndex(prefix, "/")+1]
	var dead []string
	err := r.listKeys(ctx, r.prefix+dir, func(o minio.ObjectInfo) {
		name := strings.TrimPrefix(o.Key, r.prefix)
		file := name[strings.LastIndex(name, "/")+1:]
		hidden, ok := strings.CutPrefix(file, ".")
		of, id, ok2 := strings.Cut(hidden, zerosMark)
		full := strings.TrimSuffix(name, file) + of
		if ok && ok2 && id != "" && strings.HasPrefix(full, prefix) && time.Since(o.LastModified) >= r.dead {
			dead = append(dead, o.Key)
		}
	}, func() { dead = nil })
	for _, key := range dead {
		if err == nil {
			err = r.remove(ctx, key)
		}
	}
	return err
}
